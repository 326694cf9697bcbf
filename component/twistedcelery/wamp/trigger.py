"""What users write under ``triggers``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.tasks.options import KNOWN_OPTIONS, OptionError, parse_options
from twistedcelery.wamp.uris import why_not_a_pattern

__all__ = ["Trigger", "parse_triggers", "refuse_trigger"]

_KEYS = ("topic", "match", "task", "options")
_MATCHES = ("exact", "prefix", "wildcard")


@dataclass(frozen=True, slots=True)
class Trigger:
    """An event on ``topic`` submits ``task``.

    :ivar topic: a topic, or a pattern of topics, as ``match`` says
    :ivar match: ``"exact"``, ``"prefix"`` or ``"wildcard"``, with WAMP's meaning
    :ivar task: the name of an exposed task
    :ivar options: keywords of ``send_task``
    """

    topic: str
    task: str
    match: str = "exact"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.task!r} on {self.topic!r} ({self.match})"


def parse_triggers(found: Any) -> tuple[Trigger, ...]:
    """Check what a user wrote under ``triggers``, as far as that does not depend on the application.

    :raise ConfigurationError: names the key, what was found, and what is accepted
    """
    if not isinstance(found, list | tuple):
        raise ConfigurationError(
            f"configuration key 'triggers': found {found!r:.80}, accepted is a list of objects "
            f"with the keys {', '.join(_KEYS)}"
        )
    return tuple(_parse(number, one) for number, one in enumerate(found))


def _parse(number: int, found: Any) -> Trigger:
    if not isinstance(found, Mapping):
        refuse_trigger(number, None, found, f"an object with the keys {', '.join(_KEYS)}")
    for key in found:
        if key not in _KEYS:
            refuse_trigger(number, None, key, f"only the keys {', '.join(_KEYS)}")
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
    """Raise the `ConfigurationError` that names the trigger, what was found, and what is accepted."""
    where = f"triggers[{number}]" + (f".{key}" if key else "")
    raise ConfigurationError(f"configuration key {where!r}: found {found!r:.80}, accepted is {accepted}")
