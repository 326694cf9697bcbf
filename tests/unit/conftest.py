"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest

from tests.support.transport import FakeTransport


@pytest.fixture
def transport() -> FakeTransport:
    """A transport in memory, with clients on it."""
    return FakeTransport()
