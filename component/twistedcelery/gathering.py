"""Waiting for several Deferreds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.python.failure import Failure

__all__ = ["all_done", "all_of"]


def all_of(deferreds: Iterable[Deferred[Any]]) -> Deferred[list[Any]]:
    """Fire with all values, or fail as the first one that fails. No error goes unheard."""
    return gatherResults(list(deferreds), consumeErrors=True).addErrback(_unwrapped)


def all_done(deferreds: Iterable[Deferred[Any]]) -> Deferred[None]:
    """As `all_of`, without the values."""
    return all_of(deferreds).addCallback(lambda _: None)


def _unwrapped(failure: Failure) -> Failure:
    assert isinstance(failure.value, FirstError)
    return failure.value.subFailure
