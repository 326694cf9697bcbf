"""Makes WAMP URIs of task names, events and ids.

All URIs begin with one configurable prefix, here ``celery``::

    celery.<task name>             procedure: call the task
    celery.<task name>.<event>     topic: one kind of event of all runs of the task
    celery_task.<32 hex digits>    topic: all events of one run
    celery_api.<name>              procedures for callers
    celery_admin.<name>            procedures for operators
    celery.error.<name>            errors

The other spaces are siblings of the prefix (``celery_task``, not ``celery.task``), so that a role
can be granted one without the others, and bridges with different prefixes can share a realm.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

__all__ = ["MAX_LENGTH", "Uris", "why_not_a_pattern", "why_not_a_uri"]

#: Bytes of a URI. WAMP sets no limit, but every message carries it.
MAX_LENGTH = 1024

#: WAMP's loose rules: components separated by dots, none empty, without white space and ``#``.
#: Unlike Crossbar's check, this one refuses a trailing newline.
_LOOSE = re.compile(r"[^\s.#]+(\.[^\s.#]+)*")


def why_not_a_uri(text: str) -> str | None:
    """Why ``text`` is no valid WAMP URI under the loose rules; ``None`` if it is one."""
    if not text:
        return "it is empty"
    if re.search(r"\s", text):
        return "it contains white space"
    if "#" in text:
        return "it contains '#'"
    if not _LOOSE.fullmatch(text):
        return "it has an empty component (a leading, trailing or double '.')"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode text"
    return f"it is longer than {MAX_LENGTH} bytes" if size > MAX_LENGTH else None


def why_not_a_pattern(text: str, match: str) -> str | None:
    """Why ``text`` is no pattern of URIs; ``None`` if it is one.

    :param match: WAMP's: ``"exact"``; ``"prefix"``, which may end in a dot; or ``"wildcard"``, whose empty
        components stand for any
    """
    if match == "prefix":
        return why_not_a_uri(text.removesuffix("."))
    if match == "wildcard":
        return why_not_a_uri(".".join(component or "any" for component in text.split(".")))
    return why_not_a_uri(text)


@dataclass(frozen=True, slots=True)
class Uris:
    """The URIs below one prefix.

    :ivar prefix: a valid URI itself, ``"celery"`` by default
    """

    prefix: str

    def task(self, name: str) -> str:
        """The procedure that calls a task. Check it with `why_not_a_uri`."""
        return f"{self.prefix}.{name}"

    def is_task(self, uri: str) -> bool:
        """Whether one of the bridge's procedures calls a task."""
        return uri.startswith(f"{self.prefix}.")

    def event(self, name: str, event: str) -> str:
        """The topic of one kind of event of a task."""
        return f"{self.prefix}.{name}.{event}"

    def task_events(self, task_id: str) -> str | None:
        """The topic of one run of a task; ``None`` for an id that makes no URI.

        Celery writes ids with dashes. They are left out, since the strict rules for URIs forbid them.
        """
        try:
            component = uuid.UUID(task_id).hex
        except ValueError:
            component = task_id
        uri = f"{self.prefix}_task.{component}"
        return None if why_not_a_uri(uri) else uri

    def api(self, name: str) -> str:
        """A procedure for callers."""
        return f"{self.prefix}_api.{name}"

    def admin(self, name: str) -> str:
        """A procedure for operators."""
        return f"{self.prefix}_admin.{name}"

    def owns(self, topic: str) -> bool:
        """Whether a URI, or a prefix of URIs, is in one of the bridge's own spaces."""
        spaces = (self.prefix, *(f"{self.prefix}_{space}" for space in ("task", "api", "admin")))
        return any(topic == space or topic.startswith(f"{space}.") for space in spaces)

    def error(self, name: str) -> str:
        """An error."""
        return f"{self.prefix}.error.{name}"
