"""Parses and checks the bridge's configuration: the ``extra`` object of the component."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from twistedcelery.errors import ConfigurationError, did_you_mean
from twistedcelery.wamp.event_kinds import EVENT_KINDS
from twistedcelery.wamp.options import DEFAULT_OPTIONS, KNOWN_OPTIONS, OptionError, parse_options
from twistedcelery.wamp.uris import why_not_a_pattern, why_not_a_uri
from twistedcelery.wamp.values import Unencodable, normalise

__all__ = ["Configuration", "Trigger", "refuse_trigger"]

_EVENTS = tuple(EVENT_KINDS)
_DEFAULT_EVENTS = frozenset(kind.name for kind in EVENT_KINDS.values() if kind.is_default)

#: What Crossbar adds to ``extra`` on its own.
_ADDED_BY_CROSSBAR = frozenset({"cbdir"})

#: Celery's own variable; with ``CELERY_RESULT_BACKEND`` it is all that an application without tasks needs.
_BROKER_URL = "CELERY_BROKER_URL"

#: Prefixes that routers reserve.
_RESERVED_PREFIXES = ("wamp", "crossbar")

_TRIGGER_KEYS = ("topic", "match", "task", "options")
_MATCHES = ("exact", "prefix", "wildcard")


@dataclass(frozen=True, slots=True)
class Trigger:
    """An event on ``topic`` submits ``task``.

    :ivar topic: a topic, or a pattern of topics
    :ivar match: how ``topic`` matches: WAMP's ``"exact"``, ``"prefix"`` or ``"wildcard"``
    :ivar task: the name of an exposed task
    :ivar options: keywords of ``send_task``
    """

    topic: str
    task: str
    match: str = "exact"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.task!r} on {self.topic!r} ({self.match})"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One bridge's settings. ``docs/bridge.md`` describes them for users.

    :ivar app: the Celery application, as ``celery -A`` takes it; ``None``, with ``discover`` at
        ``"workers"``: one that has only the URLs in the environment
    :ivar prefix: the URI prefix of tasks and topics
    :ivar include: glob patterns of the task names to expose
    :ivar exclude: glob patterns of the task names not to expose, although ``include`` matches
    :ivar discover: where the task names come from; ``"app"``: what the application has registered;
        ``"workers"``: what running workers announce; ``"both"``
    :ivar invoke: WAMP's registration policy
    :ivar max_in_flight: tasks in flight at once; and as many that wait for their ETA
    :ivar max_in_flight_per_caller: the same for each caller; ``None``: no limit
    :ivar max_in_flight_age: seconds after which a task no longer counts; ``None``: it counts until its end
    :ivar max_countdown: seconds that a caller's task may wait for its ETA; ``None``: any
    :ivar max_expires: seconds after which a caller may let a task expire; ``None``: any
    :ivar expires: for patterns of task names, in order, the seconds after which a task expires, and the
        longest that its callers may choose
    :ivar max_call_bytes: bytes of a call
    :ivar max_items: items that the arguments of a call, its result or a progress meta may have in all
    :ivar max_reply_bytes: bytes of a worker's reply
    :ivar drain_timeout: seconds for the calls in flight to end when the bridge stops
    :ivar publish_timeout: seconds for the broker to take a task
    :ivar call_timeout: seconds a call may wait for its result; ``None``: for ever
    :ivar on_caller_gone: whether to ``"revoke"`` or to ``"keep"`` the task of a caller who has left
    :ivar terminate: whether revoking kills the process that runs the task
    :ivar events: the events to publish
    :ivar foreign_events: whether events of tasks that no bridge sent are published
    :ivar worker_events: whether ``celery_admin.worker.*`` are published
    :ivar enable_events: whether workers are asked to send events of tasks
    :ivar retain_events: whether the router keeps the last event of each task, for as long as it runs
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
    max_in_flight_per_caller: int | None = 100
    max_in_flight_age: float | None = 3600.0
    max_countdown: float | None = 900.0
    max_expires: float | None = 86400.0
    expires: tuple[tuple[str, float | None], ...] = ()
    max_call_bytes: int = 4 * 1024 * 1024
    max_items: int = 20_000
    max_reply_bytes: int = 16 * 1024 * 1024
    drain_timeout: float = 10.0
    publish_timeout: float = 10.0
    call_timeout: float | None = None
    on_caller_gone: str = "revoke"
    terminate: bool = False
    events: frozenset[str] = _DEFAULT_EVENTS
    foreign_events: bool = True
    worker_events: bool = True
    enable_events: bool = False
    retain_events: bool = False
    publish_arguments: bool = False
    publish_results: bool = False
    tracebacks: bool = False
    event_audience: str = "all"
    task_access: str = "all"
    allow_options: frozenset[str] = DEFAULT_OPTIONS
    triggers: tuple[Trigger, ...] = ()

    @classmethod
    def parse(cls, extra: Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ) -> Configuration:
        """Parse and check a configuration.

        :param extra: the ``extra`` object of the component
        :param environ: gives ``TWISTEDCELERY_APP`` where ``extra`` has no ``app``, or ``CELERY_BROKER_URL``
        :raise ConfigurationError: names the key, what was found and what is accepted
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

    def exposes(self, name: str) -> bool:
        """Whether ``include`` and ``exclude`` leave a task of this name, and WAMP can carry the name."""
        try:
            normalise(name)
        except Unencodable:
            # `celery_api.tasks` could not list any task because of this one.
            return False
        return _matches(name, self.include) and not _matches(name, self.exclude)

    def expires_of(self, name: str) -> float | None:
        """Seconds after which a task of this name expires; ``None``: never, or as its caller says."""
        for pattern, seconds in self.expires:
            if fnmatchcase(name, pattern):
                return seconds
        return None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_key(key: object) -> NoReturn:
    # Its value is not shown: it may be a secret under a wrong name.
    hint = did_you_mean(str(key), _CHECKS) or f"; accepted are: {', '.join(_CHECKS)}"
    raise ConfigurationError(f"unknown configuration key {key!r:.80}{hint}")


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


def _expires(key: str, value: Any) -> tuple[tuple[str, float | None], ...]:
    if not isinstance(value, Mapping):
        return () if value is None else (("*", _seconds(key, value)),)
    return tuple((_text(key, pattern), _seconds_or_none(key, seconds)) for pattern, seconds in value.items())


def _one_of(*accepted: str) -> Callable[[str, Any], str]:
    def check(key: str, value: Any) -> str:
        if value not in accepted:
            _refuse(
                key, value, f"one of {', '.join(map(repr, accepted))}{did_you_mean(str(value), accepted)}"
            )
        return str(value)

    return check


def _events(key: str, value: Any) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset(_EVENTS) if value else frozenset()
    if not isinstance(value, list | tuple):
        _refuse(key, value, f"true, false, or a list of: {', '.join(_EVENTS)}")
    for event in value:
        if event not in _EVENTS:
            _refuse(key, event, f"one of {', '.join(_EVENTS)}{did_you_mean(str(event), _EVENTS)}")
    return frozenset(value)


def _option_names(key: str, value: Any) -> frozenset[str]:
    if not isinstance(value, list | tuple):
        _refuse(key, value, f"a list of: {', '.join(KNOWN_OPTIONS)}")
    for name in value:
        if not isinstance(name, str) or name not in KNOWN_OPTIONS:
            _refuse(key, name, f"one of {', '.join(KNOWN_OPTIONS)}{did_you_mean(str(name), KNOWN_OPTIONS)}")
    return frozenset(value)


def _triggers(key: str, value: Any) -> tuple[Trigger, ...]:
    """Check triggers, as far as that does not depend on the application."""
    if not isinstance(value, list | tuple):
        _refuse(key, value, f"a list of objects with the keys {', '.join(_TRIGGER_KEYS)}")
    return tuple(_parse_trigger(number, one) for number, one in enumerate(value))


def _parse_trigger(number: int, found: Any) -> Trigger:
    if not isinstance(found, Mapping):
        refuse_trigger(number, None, found, f"an object with the keys {', '.join(_TRIGGER_KEYS)}")
    for key in found:
        if key not in _TRIGGER_KEYS:
            refuse_trigger(number, None, key, f"only the keys {', '.join(_TRIGGER_KEYS)}")
    for key in ("topic", "task"):
        if not isinstance(found.get(key), str) or not found[key]:
            refuse_trigger(number, key, found.get(key), "text that is not empty")
    match = found.get("match", "exact")
    if match not in _MATCHES:
        refuse_trigger(number, "match", match, f"one of {', '.join(map(repr, _MATCHES))}")
    reason = why_not_a_pattern(found["topic"], match)
    if reason is not None:
        refuse_trigger(number, "topic", found["topic"], f"a WAMP topic for the match {match!r}; {reason}")
    try:
        options = parse_options(found.get("options"), KNOWN_OPTIONS)
    except OptionError as error:
        refuse_trigger(number, "options", found["options"], f"an object of Celery's options; {error}")
    return Trigger(found["topic"], found["task"], match, options)


def refuse_trigger(number: int, key: str | None, found: object, accepted: str) -> NoReturn:
    """Raise the `ConfigurationError` that names the trigger, what was found and what is accepted."""
    where = f"triggers[{number}]" + (f".{key}" if key else "")
    raise ConfigurationError(f"configuration key {where!r}: found {found!r:.80}, accepted is {accepted}")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "app": _text,
    "prefix": _prefix,
    "include": _patterns,
    "exclude": _patterns,
    "discover": _one_of("app", "workers", "both"),
    "invoke": _one_of("single", "first", "last", "roundrobin", "random"),
    "max_in_flight": _count,
    "max_in_flight_per_caller": lambda key, value: None if value is None else _count(key, value),
    "max_in_flight_age": _seconds_or_none,
    "max_countdown": _seconds_or_none,
    "max_expires": _seconds_or_none,
    "expires": _expires,
    "max_call_bytes": _count,
    "max_items": _count,
    "max_reply_bytes": _count,
    "drain_timeout": _seconds,
    "publish_timeout": _seconds,
    "call_timeout": _seconds_or_none,
    "on_caller_gone": _one_of("revoke", "keep"),
    "terminate": _flag,
    "events": _events,
    "foreign_events": _flag,
    "worker_events": _flag,
    "enable_events": _flag,
    "retain_events": _flag,
    "publish_arguments": _flag,
    "publish_results": _flag,
    "tracebacks": _flag,
    "event_audience": _one_of("all", "caller"),
    "task_access": _one_of("all", "caller"),
    "allow_options": _option_names,
    "triggers": _triggers,
}
