"""The kinds of task events, in one table.

A new kind is a new row. `twistedcelery.wamp.events.celery_events` reads what Celery's event of that
kind carries, and `twistedcelery.wamp.tasks.followed` publishes it where results report it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from celery import states

__all__ = [
    "BY_CELERY_TYPE",
    "EVENT_KINDS",
    "FAILED",
    "PROGRESS",
    "RECEIVED",
    "REJECTED",
    "RETRIED",
    "REVOKED",
    "SENT",
    "STARTED",
    "SUCCEEDED",
    "Ends",
    "EventKind",
]


class Ends(Enum):
    """What is over after an event."""

    NOTHING = auto()
    ATTEMPT = auto()
    TASK = auto()
    #: The attempt where the event says ``requeue``, else the task.
    EITHER = auto()


@dataclass(frozen=True, slots=True)
class EventKind:
    """One kind of event.

    :ivar name: in the configuration, and as the last component of the topic
    :ivar celery_type: the type of Celery's own event
    :ivar state: Celery's name of the state; for progress, the usual one
    :ivar rank: its place within an attempt
    :ivar ends: what it ends
    :ivar is_default: whether it is published unless the configuration says otherwise
    :ivar from_worker: whether workers send it; else the client that sends the task does
    :ivar from_stream: whether Celery's event stream is needed for it: results do not report it, or not always
    :ivar opens_attempt: whether it belongs before everything that results report
    :ivar is_immediate: whether it is published without waiting for those that belong before it
    :ivar is_throttled: whether a newer one replaces those that are not published yet
    :ivar may_be_late: whether it is published even after one of a higher rank
    """

    name: str
    celery_type: str
    state: str
    rank: int
    ends: Ends
    is_default: bool = False
    from_worker: bool = True
    from_stream: bool = False
    opens_attempt: bool = False
    is_immediate: bool = False
    is_throttled: bool = False
    may_be_late: bool = False

    def is_final(self, details: Mapping[str, Any]) -> bool:
        """Whether nothing follows an event of this kind with these details."""
        return self.ends is Ends.TASK or (self.ends is Ends.EITHER and not details.get("requeue"))

    def is_retry(self, details: Mapping[str, Any]) -> bool:
        """Whether another attempt follows an event of this kind with these details."""
        return self.ends is Ends.ATTEMPT or (self.ends is Ends.EITHER and bool(details.get("requeue")))


# fmt: off
_TABLE = (
    EventKind("sent", "task-sent", states.PENDING, 0, Ends.NOTHING,
              from_worker=False, is_immediate=True, may_be_late=True),
    EventKind("received", "task-received", states.RECEIVED, 1, Ends.NOTHING,
              from_stream=True, opens_attempt=True),
    EventKind("started", "task-started", states.STARTED, 2, Ends.NOTHING,
              from_stream=True, opens_attempt=True),
    EventKind("progress", "task-progress", "PROGRESS", 3, Ends.NOTHING, is_default=True, is_throttled=True),
    EventKind("retried", "task-retried", states.RETRY, 4, Ends.ATTEMPT, is_default=True),
    EventKind("succeeded", "task-succeeded", states.SUCCESS, 4, Ends.TASK, is_default=True),
    EventKind("failed", "task-failed", states.FAILURE, 4, Ends.TASK, is_default=True),
    EventKind("revoked", "task-revoked", states.REVOKED, 4, Ends.TASK, is_default=True, is_immediate=True),
    EventKind("rejected", "task-rejected", states.REJECTED, 4, Ends.EITHER, from_stream=True),
)
# fmt: on

#: By name, in the order in which they happen.
EVENT_KINDS: Mapping[str, EventKind] = {kind.name: kind for kind in _TABLE}

BY_CELERY_TYPE: Mapping[str, EventKind] = {kind.celery_type: kind for kind in _TABLE}

SENT, RECEIVED, STARTED, PROGRESS, RETRIED, SUCCEEDED, FAILED, REVOKED, REJECTED = _TABLE
