"""Polls result backends that announce nothing: files, SQL databases, caches, object stores and so on."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

from kombu.exceptions import ContentDisallowed

from twistedcelery.transports.decoding import FINAL_STATES
from twistedcelery.transports.threads.failures import Redactor, reply_error
from twistedcelery.transports.threads.reader import StateSink
from twistedcelery.transports.threads.snapshots import Snapshot, read_snapshots

__all__ = ["PolledReader"]

#: Seconds after which what cannot be decoded is not taken for half written any more.
_TORN_FOR = 2.0

#: Tasks that are asked for together.
_TASKS_AT_ONCE = 25

#: Seconds after which polling pauses, though there are more tasks to ask for.
_SLICE = 0.05


class PolledReader:
    """Polls all watched tasks, round after round, and at most half of the time.

    :param backend: a Celery result backend, used by this thread alone
    :param clock: seconds
    :param interval: the least number of seconds between two rounds
    """

    def __init__(
        self, backend: Any, sink: StateSink, redactor: Redactor, clock: Callable[[], float], interval: float
    ) -> None:
        self._backend = backend
        self._sink = sink
        self._redactor = redactor
        self._clock = clock
        self._interval = interval
        self._seen: dict[str, Any] = {}
        self._torn: dict[str, tuple[Any, float]] = {}
        self._round: deque[str] = deque()
        self._next_poll = clock()

    def watch(self, task_id: str) -> None:
        """Nothing is missed: a backend keeps the last state."""
        self._seen.setdefault(task_id, None)

    def forget(self, task_id: str) -> None:
        self._seen.pop(task_id, None)
        self._torn.pop(task_id, None)

    def read(self, *, in_a_hurry: bool) -> float:
        began = self._clock()
        if began < self._next_poll:
            return self._next_poll - began
        if not self._round:
            self._round.extend(self._seen)
        while self._round and self._clock() - began < _SLICE:
            some = [self._round.popleft() for _ in range(min(len(self._round), _TASKS_AT_ONCE))]
            wanted = [task_id for task_id in some if task_id in self._seen]
            for snapshot in read_snapshots(self._backend, wanted):
                if snapshot.fingerprint != self._seen[snapshot.task_id]:
                    self._changed(snapshot)
            self._sink.answered()
        # As long a pause as the work took, and between two rounds not less than the interval.
        pause = self._clock() - began
        if not self._round:
            pause = max(pause, self._interval)
        self._next_poll = self._clock() + pause
        return pause

    def close(self) -> None:
        self._backend.process_cleanup()
        # Backends have no common way to close what they opened.
        client = vars(self._backend).get("client")
        close = getattr(client, "close", None)
        if callable(close):
            close()

    def drop(self) -> None:
        with contextlib.suppress(Exception):  # it failed already, and that was reported
            self.close()

    def _changed(self, snapshot: Snapshot) -> None:
        task_id, fingerprint = snapshot.task_id, snapshot.fingerprint
        try:
            meta = snapshot.meta()
        except Exception as error:
            if not isinstance(error, ContentDisallowed) and not self._is_torn_for_good(task_id, fingerprint):
                return
            self.forget(task_id)
            self._sink.unreadable(task_id, reply_error(error, self._redactor))
            return
        self._torn.pop(task_id, None)
        self._seen[task_id] = fingerprint
        if meta["status"] in FINAL_STATES:
            self.forget(task_id)
        self._sink.changed(task_id, meta)

    def _is_torn_for_good(self, task_id: str, fingerprint: Any) -> bool:
        """Whether a state that cannot be decoded has stayed as it is for long enough.

        The file backend, for one, truncates its file before it writes.
        """
        last, since = self._torn.get(task_id, (None, 0.0))
        if last != fingerprint:
            self._torn[task_id] = fingerprint, self._clock()
            return False
        return self._clock() - since >= _TORN_FOR
