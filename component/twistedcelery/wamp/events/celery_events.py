"""Celery's events of tasks in the bridge's words.

Workers send few fields, most of them as text made for people to read:

====================  ==============================================================================
``exc_type``,         taken apart from ``exception``, which is the exception's ``repr()``. It names
``exc_message``       the class without its module; a ``repr()`` of another form than
                      ``Class(arguments)`` becomes the message, of an ``Exception``
``argsrepr``, ...     arguments and results are text, shortened, and what the task's sender has made
                      of them; so they do not have the names of the values that results give
``meta``              the fields of a ``task-progress`` event, which tasks send by themselves:
                      ``self.send_event("task-progress", current=3, total=10)``
====================  ==============================================================================
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from celery import states
from celery.utils.time import utcoffset

from twistedcelery.wamp.descriptions import plain_text
from twistedcelery.wamp.events.topics import TaskEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twistedcelery.wamp.config import Configuration

__all__ = ["Observation", "observe", "time_of"]

#: Celery's event types: the bridge's events, and the states that they tell of.
_EVENTS = {
    "task-sent": ("sent", states.PENDING),
    "task-received": ("received", states.RECEIVED),
    "task-started": ("started", states.STARTED),
    "task-progress": ("progress", "PROGRESS"),
    "task-retried": ("retried", states.RETRY),
    "task-succeeded": ("succeeded", states.SUCCESS),
    "task-failed": ("failed", states.FAILURE),
    "task-revoked": ("revoked", states.REVOKED),
    "task-rejected": ("rejected", states.REJECTED),
}

#: What Celery adds to every event, and to a task's own.
_ENVELOPE = frozenset(
    {"type", "uuid", "hostname", "pid", "clock", "timestamp", "utcoffset", "local_received"}
)

_REPR = re.compile(r"(?:\w+\.)*([^\W\d]\w*)\((.*)\)", re.DOTALL)

#: More than any time or duration.
_MAX_NUMBER = 2**53

#: Of a longer ``repr()`` the arguments are shown as they are written.
_MAX_REPR = 4096


@dataclass(frozen=True, slots=True)
class Observation:
    """What one event tells of a task.

    :ivar event: one of `twistedcelery.wamp.config.EVENTS`
    :ivar task_id: as Celery writes it
    :ivar name: the task's name; ``None``: most events do not tell it
    :ivar state: Celery's name of the state
    :ivar timestamp: when it happened, by the sender's clock: seconds since the epoch
    :ivar details: what such an event has besides; still to be normalised
    """

    event: str
    task_id: str
    name: str | None
    state: str
    timestamp: float
    details: Mapping[str, Any]

    def of(self, task: str, caller: int | None = None) -> TaskEvent:
        """The event to publish.

        :param task: the task's name
        :param caller: the WAMP session that called
        """
        return TaskEvent(self.event, task, self.task_id, self.state, self.timestamp, caller, self.details)


def observe(event: Mapping[str, Any], config: Configuration) -> Observation | None:
    """Read an event as Celery's ``Receiver`` passes it on.

    :param config: says what may be published
    :return: ``None`` for events that are not about a task, or that the bridge has no topic for
    """
    kind = _EVENTS.get(event["type"])
    task_id, name = event.get("uuid"), event.get("name")
    if kind is None or not isinstance(task_id, str) or not task_id:
        return None
    return Observation(
        kind[0],
        task_id,
        name if isinstance(name, str) and name else None,
        kind[1],
        time_of(event),
        _details(kind[0], event, config),
    )


def time_of(event: Mapping[str, Any]) -> float:
    """When an event happened: seconds since the epoch.

    Celery's ``Receiver`` moves the times of workers in other time zones by the difference of the
    zones, for display. That is undone here.
    """
    timestamp, offset = event.get("timestamp"), event.get("utcoffset")
    if not _is_number(timestamp):
        received: float = event["local_received"]
        return received
    if _is_number(offset):
        timestamp += (offset - utcoffset()) * 3600
    return float(timestamp)


def _details(kind: str, event: Mapping[str, Any], config: Configuration) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if kind == "progress":
        return {"meta": {key: value for key, value in event.items() if key not in _ENVELOPE}}
    if config.publish_arguments:
        details.update(_texts(event, {"args": "argsrepr", "kwargs": "kwargsrepr"}))
    if kind in {"failed", "retried"}:
        details["exc_type"], details["exc_message"] = _exception(event.get("exception"))
        if config.tracebacks:
            details.update(_texts(event, {"traceback": "traceback"}))
    elif kind == "succeeded":
        if _is_number(event.get("runtime")):
            details["runtime"] = event["runtime"]
        if config.publish_results:
            details.update(_texts(event, {"result": "resultrepr"}))
    elif kind == "rejected":
        details["requeue"] = bool(event.get("requeue"))
    return details


def _texts(event: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    return {new: plain_text(event[old]) for old, new in names.items() if event.get(old) is not None}


def _exception(text: Any) -> tuple[str, str]:
    """The type and the message of an exception whose ``repr()`` was sent."""
    plain = plain_text(text)
    call = _parse(plain)
    if isinstance(call, ast.Call) and _name(call) == "Retry" and len(call.args) > 1:
        # Newer workers show what they raise in place of what the task has raised.
        plain = ast.get_source_segment(plain, call.args[1]) or plain
        call = _parse(plain)
    if plain == "None":
        # A retry that no exception led to.
        return "Retry", ""
    if isinstance(call, ast.Call):
        return _name(call), _message(call, plain)
    match = _REPR.fullmatch(plain)
    return (match[1], match[2]) if match else ("Exception", plain)


def _parse(text: str) -> ast.expr | None:
    """Python's view of a ``repr()``; ``None`` where it is no expression."""
    if len(text) > _MAX_REPR:
        return None
    try:
        with warnings.catch_warnings():
            # Of Python, which takes it for somebody's program.
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _message(call: ast.Call, text: str) -> str:
    """What ``str()`` of the exception would be, where its arguments are simple values."""
    if not call.keywords:
        try:
            arguments = tuple(ast.literal_eval(argument) for argument in call.args)
        except (ValueError, TypeError, MemoryError, RecursionError):
            pass  # Other objects: shown as they are written.
        else:
            return plain_text("" if not arguments else arguments if len(arguments) > 1 else arguments[0])
    return text.partition("(")[2].removesuffix(")")


def _is_number(value: Any) -> TypeGuard[int | float]:
    # JSON's integers may be too large for a float, and its floats no numbers.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER
