"""Defines how the waiting thread reads a result backend, pushed or polled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from twistedcelery.errors import ResultError

__all__ = ["Reader", "StateSink"]


class StateSink(Protocol):
    """Where a `Reader` puts what it finds."""

    def changed(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """A task has a new state."""

    def unreadable(self, task_id: str, error: ResultError) -> None:
        """A task's state cannot be read, and never will be."""

    def answered(self) -> None:
        """The backend did as it was asked."""


class Reader(Protocol):
    """Reads the states of tasks from one backend. Everything blocks.

    What a method raises means that the backend cannot be reached: drop the reader, make another.
    """

    def watch(self, task_id: str) -> None:
        """Begin with a task; when this returns, no later state of it is missed."""

    def forget(self, task_id: str) -> None:
        """Stop with a task."""

    def read(self, *, in_a_hurry: bool) -> float:
        """Put new states into the sink.

        :param in_a_hurry: other work waits, so do not wait for states
        :return: the seconds until reading again makes sense
        """

    def close(self) -> None:
        """Let go of the backend in good order."""

    def drop(self) -> None:
        """Let go of a backend that failed."""
