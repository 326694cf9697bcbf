"""Reads result backends that announce new states: ``redis://``, ``rpc://`` and similar ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from celery.backends.base import BaseKeyValueStoreBackend
from kombu.messaging import Consumer

from twistedcelery.transports.decoding import FINAL_STATES, check_meta
from twistedcelery.transports.threads.failures import Redactor, reply_error
from twistedcelery.transports.threads.reader import StateSink
from twistedcelery.transports.threads.snapshots import read_snapshots

__all__ = ["PushedReader"]

#: Seconds that a new task may have to wait while the thread waits for states: as a rule, and when
#: nothing has happened for `_QUIET_AFTER` seconds.
_WAIT = 0.005
_QUIET_WAIT = 0.02
_QUIET_AFTER = 1.0

#: States taken in before other work gets its turn.
_STATES_AT_ONCE = 100

#: Seconds between looking for results whose announcement was lost on its way.
_LOOK_EVERY = 2.0


class PushedReader:
    """Consumes states with Celery's own result consumer.

    :param backend: one of Celery's ``AsyncBackendMixin``, from
        `twistedcelery.transports.threads.backend`
    :param clock: seconds
    """

    def __init__(self, backend: Any, sink: StateSink, redactor: Redactor, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._sink = sink
        self._redactor = redactor
        self._clock = clock
        self._watched: set[str] = set()
        self._is_store = isinstance(backend, BaseKeyValueStoreBackend)
        self._next_look = clock()
        self._busy_at = clock()
        self._taken_in = 0
        self._consumer = backend.result_consumer
        # Instead of resolving Celery's AsyncResults, of which there are none.
        self._consumer.on_state_change = self._state_changed
        # Used by rpc:// alone, whose replies are messages.
        self._consumer.Consumer = partial(Consumer, on_decode_error=self._reply_undecodable)

    def watch(self, task_id: str) -> None:
        self._consumer.consume_from(task_id)
        self._busy_at = self._clock()
        self._watched.add(task_id)

    def forget(self, task_id: str) -> None:
        if task_id in self._watched:
            self._watched.discard(task_id)
            self._consumer.cancel_for(task_id)

    def read(self, *, in_a_hurry: bool) -> float:
        wait = 0.0
        if not in_a_hurry:
            wait = _WAIT if self._clock() - self._busy_at < _QUIET_AFTER else _QUIET_WAIT
        for _ in range(_STATES_AT_ONCE):
            before = self._taken_in
            with contextlib.suppress(TimeoutError):  # there was no state
                self._consumer.drain_events(timeout=wait)
            if self._taken_in == before:
                break
            self._busy_at = self._clock()
            wait = 0.0
        self._sink.answered()
        if self._is_store and self._clock() >= self._next_look:
            self._look_for_lost_results()
            self._next_look = self._clock() + _LOOK_EVERY
        return 0.0

    def close(self) -> None:
        self._consumer.stop()

    def drop(self) -> None:
        with contextlib.suppress(Exception):  # it failed already, and that was reported
            self._consumer.drop()

    def _state_changed(self, meta: Any, message: Any) -> None:
        """Called by Celery's consumer.

        :param message: a kombu message from ``rpc://``, a dictionary from Redis, or ``None``
        """
        self._taken_in += 1
        task_id = _task_of(meta, message)
        if task_id not in self._watched:
            if task_id is None:
                # Its task is unknown. If it is stored under a task's key, reading finds it.
                self._next_look = self._clock()
            return
        try:
            # Twice does not hurt: Redis' consumer has rebuilt exceptions already.
            meta = self._backend.meta_from_decoded(dict(check_meta(meta)))
        except Exception as error:
            self._sink.unreadable(task_id, reply_error(error, self._redactor))
            return
        self._sink.changed(task_id, meta)

    def _reply_undecodable(self, message: Any, error: Exception) -> None:
        self._taken_in += 1
        task_id = _task_of(None, message)
        if task_id in self._watched:
            self._sink.unreadable(task_id, reply_error(error, self._redactor))

    def _look_for_lost_results(self) -> None:
        """Redis announces a result once, to the clients whose subscription has arrived by then.

        Only final states are taken: an announcement of an earlier one may still be on its way.
        """
        for snapshot in read_snapshots(self._backend, list(self._watched)):
            try:
                meta = snapshot.meta()
            except Exception as error:
                self._sink.unreadable(snapshot.task_id, reply_error(error, self._redactor))
                continue
            if meta["status"] in FINAL_STATES:
                self._sink.changed(snapshot.task_id, meta)


def _task_of(meta: Any, message: Any) -> str | None:
    """The task that a state is of, where that can be known."""
    task_id = meta.get("task_id") if isinstance(meta, Mapping) else None
    if task_id is None and message is not None:
        properties = getattr(message, "properties", None)
        if isinstance(properties, Mapping):
            task_id = properties.get("correlation_id")
    return task_id if isinstance(task_id, str) else None
