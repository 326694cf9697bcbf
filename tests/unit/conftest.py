"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest

from tests.support.transport import FakeTransport


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    """A transport in memory, which every client made during the test gets."""
    return FakeTransport(monkeypatch)
