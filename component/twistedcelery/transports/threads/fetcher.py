"""Fetches results in the waiting thread, from one result backend that is made anew when it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twistedcelery.errors import ConfigurationError, ResultError
from twistedcelery.transports.threads.backend import OwnBackend
from twistedcelery.transports.threads.backoff import Backoff
from twistedcelery.transports.threads.failures import Redactor
from twistedcelery.transports.threads.polled import PolledReader
from twistedcelery.transports.threads.pushed import PushedReader
from twistedcelery.transports.threads.reader import Reader
from twistedcelery.transports.threads.thread import DedicatedThread

__all__ = ["Fetcher", "FetcherOwner"]


class FetcherOwner(Protocol):
    """The reactor's side, called on the reactor's thread."""

    def placed(self, task_ids: list[str]) -> None:
        """No state of these tasks is missed from now on."""

    def changed(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """A task has a new state."""

    def unreadable(self, task_id: str, error: ResultError) -> None:
        """A task's state cannot be read."""

    def reached(self) -> None:
        """The backend answers."""

    def lost(self, reason: str) -> None:
        """The backend does not answer; it is tried again."""

    def unusable(self, error: ConfigurationError) -> None:
        """The backend cannot work as it is configured. Nothing is watched any more."""


class Fetcher:
    """Keeps reading the states of the watched tasks. Everything here runs in the waiting thread.

    :param backend: makes result backends
    :param clock: seconds, of the reactor
    :param interval: the least number of seconds between two polls, of backends that are polled
    :param thread: where this runs
    :param owner: gets what is found
    """

    def __init__(
        self,
        backend: OwnBackend,
        redactor: Redactor,
        clock: Callable[[], float],
        interval: float,
        thread: DedicatedThread,
        owner: FetcherOwner,
    ) -> None:
        self._backend = backend
        self._redactor = redactor
        self._clock = clock
        self._interval = interval
        self._thread = thread
        self._owner = owner
        self._reader: Reader | None = None
        self._tasks: dict[str, None] = {}
        # Those of the tasks that the reader does not know yet.
        self._unplaced: dict[str, None] = {}
        self._was_reached = False
        self._is_reached: bool | None = None
        self._backoff = Backoff(clock)
        #: When the backend last did as it was asked. Read by the reactor too.
        self.answered_at = 0.0

    def watch(self, task_id: str) -> None:
        """Begin with a task."""
        self._tasks[task_id] = None
        self._unplaced[task_id] = None

    def forget(self, task_id: str) -> None:
        """Stop with a task."""
        self._tasks.pop(task_id, None)
        self._unplaced.pop(task_id, None)
        if self._reader is not None:
            try:
                self._reader.forget(task_id)
            except Exception as error:
                self._failed(error)

    def step(self) -> float | None:
        """Place new tasks, read new states.

        :return: seconds until there is something to do again; ``None``: not before the next job
        """
        if not self._tasks:
            return None
        if self._reader is None and self._backoff.remaining:
            return self._backoff.remaining
        try:
            reader = self._reader or self._make_reader()
            placed = list(self._unplaced)
            for task_id in placed:
                reader.watch(task_id)
            self._unplaced.clear()
            # `placed` follows once the backend has answered.
            delay = reader.read(in_a_hurry=bool(placed) or self._thread.has_jobs())
        except Exception as error:
            self._failed(error)
            return self._backoff.remaining
        self._backoff.succeeded()
        if placed:
            self._thread.post(self._owner.placed, placed)
        return delay

    def close(self) -> None:
        """Let go of the backend."""
        if self._reader is not None:
            try:
                self._reader.close()
            except Exception:
                # The backend went away first, which does not matter any more.
                self._reader.drop()

    # The reader's sink

    def changed(self, task_id: str, meta: Mapping[str, Any]) -> None:
        self._thread.post(self._owner.changed, task_id, meta)

    def unreadable(self, task_id: str, error: ResultError) -> None:
        self._thread.post(self._owner.unreadable, task_id, error)

    def answered(self) -> None:
        self.answered_at = self._clock()
        if not self._is_reached:
            self._is_reached = self._was_reached = True
            self._thread.post(self._owner.reached)

    # The backend

    def _make_reader(self) -> Reader:
        backend = self._backend.make()
        reader: Reader
        if self._backend.is_pushed:
            reader = PushedReader(backend, self, self._redactor, self._clock)
        else:
            reader = PolledReader(backend, self, self._redactor, self._clock, self._interval)
        self._reader = reader
        self._unplaced = dict.fromkeys(self._tasks)
        return reader

    def _failed(self, error: Exception) -> None:
        if self._reader is not None:
            self._reader.drop()
            self._reader = None
        if isinstance(error, ConfigurationError) and not self._was_reached:
            self._tasks.clear()
            self._unplaced.clear()
            self._thread.post(self._owner.unusable, error)
            return
        self._backoff.failed()
        if self._is_reached is not False:
            self._is_reached = False
            self._thread.post(self._owner.lost, self._redactor.text(error))
