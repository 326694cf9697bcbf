"""Turns the final state of a task into a value or a failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import states
from celery.exceptions import Reject
from twisted.python.failure import Failure

from twistedcelery.errors import ReplyUndecodable

__all__ = ["FINAL_STATES", "outcome_of"]

#: States after which nothing follows. Celery's ``READY_STATES`` lacks the two that no backend
#: stores but that a worker may report.
FINAL_STATES = frozenset({*states.READY_STATES, states.IGNORED, states.REJECTED})


def outcome_of(meta: Mapping[str, Any]) -> Any:
    """The outcome of a task that has ended.

    :param meta: a final state as Celery stores it
    :return: the value, or a `Failure` with what ``AsyncResult.get()`` would have raised
    """
    state, result = meta["status"], meta["result"]
    if state in states.PROPAGATE_STATES:
        if not isinstance(result, BaseException):
            result = ReplyUndecodable(f"the task ended as {state} and its reply carries no exception")
        return Failure(result)
    return Failure(Reject(result)) if state == states.REJECTED else result
