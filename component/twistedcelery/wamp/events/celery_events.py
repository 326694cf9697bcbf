"""Translates Celery's task events to the bridge's.

Workers send few fields, most of them as text for people:

====================  ==============================================================================
``exc_type``,         taken apart from ``exception``, which is the exception's ``repr()``. It names
``exc_message``       the class without its module; a ``repr()`` of another form than
                      ``Class(arguments)`` becomes the message, of an ``Exception``
``argsrepr``, ...     arguments and results are text, shortened, as the sender of the task made it;
                      so their names differ from those of the values that results carry
``meta``              the fields of a ``task-progress`` event, which tasks send themselves:
                      ``self.send_event("task-progress", current=3, total=10)``
====================  ==============================================================================
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from celery.utils.time import utcoffset

from twistedcelery.wamp.event_kinds import (
    BY_CELERY_TYPE,
    FAILED,
    PROGRESS,
    REJECTED,
    RETRIED,
    SUCCEEDED,
    EventKind,
)
from twistedcelery.wamp.events.topics import TaskEvent
from twistedcelery.wamp.values import plain_text

if TYPE_CHECKING:
    from twistedcelery.wamp.config import Configuration

__all__ = ["Observation", "observe", "time_of"]

#: What Celery adds to every event, a task's own included.
_ENVELOPE = frozenset(
    {"type", "uuid", "hostname", "pid", "clock", "timestamp", "utcoffset", "local_received"}
)

_REPR = re.compile(r"(?:\w+\.)*([^\W\d]\w*)\((.*)\)", re.DOTALL)

#: More than any time or duration.
_MAX_NUMBER = 2**53

#: The arguments of a longer ``repr()`` are not parsed.
_MAX_REPR = 4096


@dataclass(frozen=True, slots=True)
class Observation:
    """What one of Celery's events reports of a task.

    :ivar task_id: as Celery writes it
    :ivar name: the task's name; ``None``: most events do not have it
    :ivar timestamp: when it happened, by the sender's clock: seconds since the epoch
    :ivar details: what this kind of event has besides; not yet normalised
    """

    kind: EventKind
    task_id: str
    name: str | None
    timestamp: float
    details: Mapping[str, Any]

    def of(self, task: str, caller: int | None = None) -> TaskEvent:
        """The event to publish.

        :param task: the task's name
        :param caller: the WAMP session that called
        """
        return TaskEvent(self.kind, task, self.task_id, self.kind.state, self.timestamp, caller, self.details)


def observe(event: Mapping[str, Any], config: Configuration) -> Observation | None:
    """Read an event as Celery's ``Receiver`` passes it on.

    :param config: says what may be published
    :return: ``None`` for an event that is about no task, or that the bridge has no topic for
    """
    kind = BY_CELERY_TYPE.get(event["type"])
    task_id, name = event.get("uuid"), event.get("name")
    if kind is None or not isinstance(task_id, str) or not task_id:
        return None
    name = name if isinstance(name, str) and name else None
    return Observation(kind, task_id, name, time_of(event), _details(kind, event, config))


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


def _details(kind: EventKind, event: Mapping[str, Any], config: Configuration) -> dict[str, Any]:
    if kind is PROGRESS:
        return {"meta": {key: value for key, value in event.items() if key not in _ENVELOPE}}
    details: dict[str, Any] = {}
    if config.publish_arguments:
        details.update(_texts(event, {"args": "argsrepr", "kwargs": "kwargsrepr"}))
    read = _READERS.get(kind.name)
    return details if read is None else {**details, **read(event, config)}


def _of_failure(event: Mapping[str, Any], config: Configuration) -> dict[str, Any]:
    exc_type, exc_message = _exception(event.get("exception"))
    traceback = _texts(event, {"traceback": "traceback"}) if config.tracebacks else {}
    return {"exc_type": exc_type, "exc_message": exc_message, **traceback}


def _of_success(event: Mapping[str, Any], config: Configuration) -> dict[str, Any]:
    runtime = {"runtime": event["runtime"]} if _is_number(event.get("runtime")) else {}
    result = _texts(event, {"result": "resultrepr"}) if config.publish_results else {}
    return {**runtime, **result}


def _of_rejection(event: Mapping[str, Any], _: Configuration) -> dict[str, Any]:
    return {"requeue": bool(event.get("requeue"))}


#: By the name of the kind of event; the others carry nothing more.
_READERS: dict[str, Callable[[Mapping[str, Any], Configuration], dict[str, Any]]] = {
    RETRIED.name: _of_failure,
    FAILED.name: _of_failure,
    SUCCEEDED.name: _of_success,
    REJECTED.name: _of_rejection,
}


def _texts(event: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    return {new: plain_text(event[old]) for old, new in names.items() if event.get(old) is not None}


def _exception(text: Any) -> tuple[str, str]:
    """The type and the message of an exception whose ``repr()`` was sent."""
    plain = plain_text(text)
    call = _parse(plain)
    if isinstance(call, ast.Call) and _name(call) == "Retry" and len(call.args) > 1:
        # Newer workers send the Retry that they raise, which holds what the task raised.
        plain = ast.get_source_segment(plain, call.args[1]) or plain
        call = _parse(plain)
    if plain == "None":
        # A retry without an exception.
        return "Retry", ""
    if isinstance(call, ast.Call):
        return _name(call), _message(call, plain)
    match = _REPR.fullmatch(plain)
    return (match[1], match[2]) if match else ("Exception", plain)


def _parse(text: str) -> ast.expr | None:
    """Python's view of a ``repr()``; ``None`` if it is no expression."""
    if len(text) > _MAX_REPR:
        return None
    try:
        with warnings.catch_warnings():
            # Python warns as if it were a program's own source.
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _message(call: ast.Call, text: str) -> str:
    """What ``str()`` of the exception would be, if its arguments are simple values."""
    if not call.keywords:
        try:
            arguments = tuple(ast.literal_eval(argument) for argument in call.args)
        except (ValueError, TypeError, MemoryError, RecursionError):
            pass  # Other objects: kept as text.
        else:
            return plain_text("" if not arguments else arguments if len(arguments) > 1 else arguments[0])
    return text.partition("(")[2].removesuffix(")")


def _is_number(value: Any) -> TypeGuard[int | float]:
    # JSON's integers may be too large for a float, and its floats may be NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER
