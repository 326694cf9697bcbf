"""The bridge's configuration: what users write under ``extra``, checked before anything starts."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.tasks.options import DEFAULT_OPTIONS, KNOWN_OPTIONS
from twistedcelery.wamp.trigger import Trigger, parse_triggers
from twistedcelery.wamp.uris import why_not_a_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["DEFAULT_EVENTS", "EVENTS", "Configuration"]

#: Every event of a task, in the order of its life.
EVENTS = (
    "sent",
    "received",
    "started",
    "progress",
    "retried",
    "succeeded",
    "failed",
    "revoked",
    "rejected",
)

DEFAULT_EVENTS = frozenset({"progress", "succeeded", "failed", "revoked", "retried"})

#: What Crossbar adds to ``extra`` on its own.
_ADDED_BY_CROSSBAR = frozenset({"cbdir"})

#: Celery's own variable; with ``CELERY_RESULT_BACKEND`` it is all that an application without tasks needs.
_BROKER_URL = "CELERY_BROKER_URL"

#: Prefixes that a router keeps for itself.
_RESERVED_PREFIXES = ("wamp", "crossbar")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One bridge's settings; CONTRACT section 4 lists them for users.

    :ivar app: the Celery application, as ``celery -A`` takes it; ``None``: no more than the URLs in the
        environment, with ``discover`` at ``"workers"``
    :ivar prefix: the URI prefix of tasks and topics
    :ivar include: glob patterns of the task names to expose
    :ivar exclude: glob patterns of those among them not to expose
    :ivar discover: where the task names come from; ``"app"``: what the application has registered;
        ``"workers"``: what running workers announce; ``"both"``
    :ivar invoke: WAMP's registration policy
    :ivar max_in_flight: tasks followed at once
    :ivar max_in_flight_per_caller: tasks of one WAMP session followed at once; ``None``: no limit of its own
    :ivar drain_timeout: seconds that calls in flight get to end when the bridge stops
    :ivar publish_timeout: seconds for the broker to take a task
    :ivar call_timeout: seconds a call may wait for its result; ``None``: for ever
    :ivar on_caller_gone: ``"revoke"`` or ``"keep"`` the task of a caller who left or gave up
    :ivar terminate: whether revoking kills the process that runs the task
    :ivar events: the events to publish
    :ivar foreign_events: whether events of tasks that no bridge has sent are published
    :ivar worker_events: whether ``celery_admin.worker.*`` are published
    :ivar enable_events: whether workers are asked to send events of tasks
    :ivar publish_arguments: whether events carry the task's arguments
    :ivar publish_results: whether ``succeeded`` carries the result
    :ivar tracebacks: whether errors and events carry remote tracebacks
    :ivar event_audience: ``"all"``, or ``"caller"``: only the session that called
    :ivar task_access: whose tasks ``celery_api`` gives access to: ``"all"``, or ``"caller"``: one's own
    :ivar allow_options: keys that callers may use in ``celery_options``
    :ivar triggers: the WAMP events that submit tasks
    """

    app: str | None = None
    prefix: str = "celery"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ("celery.*",)
    discover: str = "app"
    invoke: str = "roundrobin"
    max_in_flight: int = 1000
    max_in_flight_per_caller: int | None = None
    drain_timeout: float = 10.0
    publish_timeout: float = 10.0
    call_timeout: float | None = None
    on_caller_gone: str = "revoke"
    terminate: bool = False
    events: frozenset[str] = DEFAULT_EVENTS
    foreign_events: bool = True
    worker_events: bool = True
    enable_events: bool = False
    publish_arguments: bool = False
    publish_results: bool = False
    tracebacks: bool = False
    event_audience: str = "all"
    task_access: str = "all"
    allow_options: frozenset[str] = DEFAULT_OPTIONS
    triggers: tuple[Trigger, ...] = ()

    @classmethod
    def parse(cls, extra: Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ) -> Configuration:
        """Check what a user wrote.

        :param extra: the ``extra`` object of the component
        :param environ: gives ``TWISTEDCELERY_APP`` where ``extra`` has no ``app``, or ``CELERY_BROKER_URL``
        :raise ConfigurationError: names the key, what was found, and what is accepted
        """
        given = {key: value for key, value in (extra or {}).items() if key not in _ADDED_BY_CROSSBAR}
        if "app" not in given and environ.get("TWISTEDCELERY_APP"):
            given["app"] = environ["TWISTEDCELERY_APP"]
        if "app" not in given and not (given.get("discover") == "workers" and environ.get(_BROKER_URL)):
            raise ConfigurationError(
                "configuration key 'app' is missing: give the Celery application, as `celery -A` takes it, "
                "there or in the environment variable TWISTEDCELERY_APP. With 'discover' at 'workers', "
                f"{_BROKER_URL} in the environment does as well"
            )
        for key in given:
            if key not in _CHECKS:
                _refuse_key(key)
        return cls(**{key: _CHECKS[key](key, value) for key, value in given.items()})


def _refuse_key(key: object) -> NoReturn:
    # Its value is not shown: it may be a secret that somebody hoped would work here.
    close = difflib.get_close_matches(str(key), _CHECKS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"accepted are: {', '.join(_CHECKS)}"
    raise ConfigurationError(f"unknown configuration key {key!r:.80}; {hint}")


def _refuse(key: str, found: object, accepted: str) -> NoReturn:
    raise ConfigurationError(f"configuration key {key!r}: found {found!r:.80}, accepted is {accepted}")


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        _refuse(key, value, "text that is not empty")
    return value


def _prefix(key: str, value: Any) -> str:
    if not isinstance(value, str) or why_not_a_uri(value) or value.split(".")[0] in _RESERVED_PREFIXES:
        reserved = " or ".join(map(repr, _RESERVED_PREFIXES))
        _refuse(key, value, f"a WAMP URI, such as 'celery' or 'com.example', that is not below {reserved}")
    return value


def _patterns(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        _refuse(key, value, "a list of glob patterns, such as ['my_app.*']")
    return tuple(value)


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse(key, value, "true or false")
    return value


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _refuse(key, value, "a whole number of at least 1")
    return value


def _seconds(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        _refuse(key, value, "a number of seconds above 0")
    return float(value)


def _seconds_or_none(key: str, value: Any) -> float | None:
    return None if value is None else _seconds(key, value)


def _one_of(*accepted: str) -> Callable[[str, Any], str]:
    def check(key: str, value: Any) -> str:
        if value not in accepted:
            _refuse(key, value, f"one of {', '.join(map(repr, accepted))}{_hint(value, accepted)}")
        return str(value)

    return check


def _events(key: str, value: Any) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset(EVENTS) if value else frozenset()
    if not isinstance(value, list | tuple):
        _refuse(key, value, f"true, false, or a list of: {', '.join(EVENTS)}")
    for event in value:
        if event not in EVENTS:
            _refuse(key, event, f"one of {', '.join(EVENTS)}{_hint(event, EVENTS)}")
    return frozenset(value)


def _option_names(key: str, value: Any) -> frozenset[str]:
    if not isinstance(value, list | tuple):
        _refuse(key, value, f"a list of: {', '.join(KNOWN_OPTIONS)}")
    for name in value:
        if not isinstance(name, str) or name not in KNOWN_OPTIONS:
            _refuse(key, name, f"one of {', '.join(KNOWN_OPTIONS)}{_hint(name, KNOWN_OPTIONS)}")
    return frozenset(value)


def _hint(found: object, accepted: tuple[str, ...] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(found), accepted, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "app": _text,
    "prefix": _prefix,
    "include": _patterns,
    "exclude": _patterns,
    "discover": _one_of("app", "workers", "both"),
    "invoke": _one_of("single", "first", "last", "roundrobin", "random"),
    "max_in_flight": _count,
    "max_in_flight_per_caller": lambda key, value: None if value is None else _count(key, value),
    "drain_timeout": _seconds,
    "publish_timeout": _seconds,
    "call_timeout": _seconds_or_none,
    "on_caller_gone": _one_of("revoke", "keep"),
    "terminate": _flag,
    "events": _events,
    "foreign_events": _flag,
    "worker_events": _flag,
    "enable_events": _flag,
    "publish_arguments": _flag,
    "publish_results": _flag,
    "tracebacks": _flag,
    "event_audience": _one_of("all", "caller"),
    "task_access": _one_of("all", "caller"),
    "allow_options": _option_names,
    "triggers": lambda _, value: parse_triggers(value),
}
