"""Looks at how Deferreds have ended, in tests that wait for nothing."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["error_of", "outcomes_of"]


def outcomes_of(deferred: Deferred[Any]) -> list[Any]:
    """A list that the outcome is put into: the value, or the exception. It is empty until then."""
    outcomes: list[Any] = []
    deferred.addBoth(
        lambda outcome: outcomes.append(outcome.value if isinstance(outcome, Failure) else outcome)
    )
    return outcomes


def error_of(deferred: Deferred[Any], expected: type[BaseException]) -> Any:
    """The error that a Deferred has failed with.

    :param expected: its class
    """
    (outcome,) = outcomes_of(deferred)
    assert type(outcome) is expected, outcome
    return outcome
