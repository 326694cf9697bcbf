"""A pytest plugin: ``pytest_plugins = ["twistedcelery.testing.plugin"]`` in a ``conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from twistedcelery.testing import MemoryTransport

__all__ = ["memory_transport"]


@pytest.fixture
def memory_transport() -> Iterator[MemoryTransport]:
    """A transport in memory for ``TwistedCelery(app, transport=memory_transport)``.

    The test fails if it leaves a client that was not disconnected.
    """
    transport = MemoryTransport()
    yield transport
    assert not transport.is_open, "a client of memory_transport was not disconnected"
