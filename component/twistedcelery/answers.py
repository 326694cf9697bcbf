"""What a result asks, and somebody who can answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

__all__ = ["Answers"]


class Answers(Protocol):
    """Answers the questions of `twistedcelery.results`."""

    def from_tuple(self, stored: Any) -> Any:
        """A result as Celery stores it, and those above and below it."""

    def wait(
        self,
        result: Any,
        *,
        timeout: float | None,
        propagate: bool,
        follow_parents: bool,
        callback: Callable[[str, Any], object] | None,
    ) -> Deferred[Any]:
        """As ``get()`` of the result."""

    def meta(self, task_id: str) -> Deferred[Mapping[str, Any]]:
        """The last state of a task."""

    def exists(self, task_id: str) -> Deferred[bool]:
        """Whether there is a state of a task."""

    def forget(self, task_id: str) -> Deferred[None]:
        """Delete the state of a task."""

    def save_group(self, group: Any) -> Deferred[None]:
        """Keep which tasks a group has."""

    def delete_group(self, group_id: str) -> Deferred[None]:
        """Undo `save_group`."""

    def restore_group(self, group_id: str) -> Deferred[Any]:
        """Read what `save_group` kept."""

    def revoke(self, task_ids: Sequence[str], terminate: bool, signal: str) -> Deferred[None]:
        """Revoke tasks."""

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any], terminate: bool, signal: str
    ) -> Deferred[Any]:
        """Revoke the tasks that have these stamps."""
