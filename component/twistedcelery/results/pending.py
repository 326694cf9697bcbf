"""Keeps which calls wait for which task, and the last states of tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

from celery.states import RETRY
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedcelery._deferreds import all_done
from twistedcelery.errors import ResultBackendUnavailable, ResultError, TwistedCeleryError
from twistedcelery.transports.decoding import FINAL_STATES
from twistedcelery.transports.interface import ResultSource

__all__ = ["MAX_STATES", "MAX_STATE_BYTES", "PendingResults", "StateCache", "Waiting", "size_of"]

_log = Logger()

#: How many states are kept that no call holds.
MAX_STATES = 1000

#: Bytes that these states may take, about.
MAX_STATE_BYTES = 32 * 1024 * 1024

#: Bytes of an item in a container, and of a container, about.
_ITEM = 32


class Holder(Protocol):
    """An object that has a task's final state, such as the call that waited for it."""

    meta: Mapping[str, Any] | None


class Waiting(Protocol):
    """An object that waits for a task: a call, or a part of one.

    :ivar task_name: names the task in errors
    """

    @property
    def task_id(self) -> str: ...

    @property
    def task_name(self) -> str: ...

    @property
    def holder(self) -> Holder:
        """The object that has the final state afterwards."""

    def update(self, state: str, meta: Any) -> None:
        """The task has a state that is not final."""

    def finish(self, meta: Mapping[str, Any]) -> None:
        """The task has ended."""

    def fail(self, error: TwistedCeleryError) -> None:
        """What became of the task will not be known."""


class PendingResults:
    """The tasks whose result has not come, by id.

    A `twistedcelery.transports.interface.ReplyReceiver`. A reply may be a duplicate, late, or for an
    unknown task: the first final state ends the waiting, and every other reply is dropped.

    :ivar source: watches the tasks; set before the first `add`
    :ivar states: the last states
    :ivar on_resumed: called as `resumed` is
    """

    source: ResultSource | None = None

    def __init__(self) -> None:
        self.states = StateCache()
        self.on_resumed: Callable[[bool], None] = lambda _replies_lost: None
        # A caller may reuse a task id while its first call waits: both get the result.
        self._waiting: dict[str, list[Waiting]] = {}
        self._retried: set[str] = set()
        self._next_states: dict[str, list[Callable[[], None]]] = {}

    def add(self, waiting: Waiting) -> Deferred[None] | None:
        """Wait for a task. Done before the task is published, so that no reply is missed.

        :return: as `twistedcelery.transports.interface.ResultSource.watch`
        """
        assert self.source is not None
        task_id = waiting.task_id
        self._waiting.setdefault(task_id, []).append(waiting)
        return self.source.watch(task_id)

    def add_all(self, several: Iterable[Waiting]) -> Deferred[None] | None:
        """As `add`."""
        ready = [one for one in map(self.add, several) if one is not None]
        return all_done(ready) if ready else None

    def is_waited_for(self, task_id: str) -> bool:
        """Whether anything waits for a task."""
        return task_id in self._waiting

    def waiters_of(self, task_id: str) -> int:
        """How many wait for a task."""
        return len(self._waiting.get(task_id, ()))

    def was_retried(self, task_id: str) -> bool:
        """Whether a task that is waited for has had the state ``RETRY``."""
        return task_id in self._retried

    def on_next_state(self, task_id: str, callback: Callable[[], None]) -> None:
        """Call back once, before the next state of a task is passed on, whether or not it can be read."""
        self._next_states.setdefault(task_id, []).append(callback)

    def ignore_next_state(self, task_id: str, callback: Callable[[], None]) -> None:
        """Undo `on_next_state`, if it has not called back."""
        callbacks = self._next_states.get(task_id, [])
        if callback in callbacks:
            callbacks.remove(callback)
            if not callbacks:
                del self._next_states[task_id]

    def update(self, task_id: str, state: str, meta: Any) -> None:
        """Pass on a state that no worker has stored."""
        for waiting in tuple(self._waiting.get(task_id, ())):
            waiting.update(state, meta)

    def discard(self, waiting: Waiting) -> None:
        """Stop waiting, if it does wait."""
        several = self._waiting.get(waiting.task_id)
        if several is None or waiting not in several:
            return
        several.remove(waiting)
        if not several:
            del self._waiting[waiting.task_id]
            self._forget(waiting.task_id)

    def state_changed(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """Pass a state on to what waits for the task; a final state ends the waiting."""
        state = meta["status"]
        self._has_state(task_id)
        if state not in FINAL_STATES:
            self.states.note(task_id, meta)
            if state == RETRY and task_id in self._waiting:
                self._retried.add(task_id)
            self.update(task_id, state, meta["result"])
            return
        several = self._take(task_id)
        if several:
            self.states.delivered(task_id, several[0].holder)
        else:
            self.states.note(task_id, meta)
        for waiting in several:
            waiting.finish(meta)

    def reply_failed(self, task_id: str, error: ResultError) -> None:
        """Fail what waits for a task whose reply cannot be read, or will not come."""
        if not isinstance(error, ResultBackendUnavailable):
            self._has_state(task_id)
        for waiting in self._take(task_id):
            waiting.fail(error)

    def resumed(self, replies_lost: bool) -> None:
        """States come again after an interruption; see `twistedcelery.transports.interface.ReplyReceiver`."""
        self.on_resumed(replies_lost)

    def fail_all(self, make_error: Callable[[Waiting], TwistedCeleryError]) -> None:
        """Fail everything that waits."""
        for task_id in list(self._waiting):
            for waiting in self._take(task_id):
                waiting.fail(make_error(waiting))

    def _has_state(self, task_id: str) -> None:
        if task_id in self._next_states:
            for callback in self._next_states.pop(task_id):
                callback()

    def _take(self, task_id: str) -> list[Waiting]:
        several = self._waiting.pop(task_id, None)
        if several is None:
            _log.debug("dropped a reply for task {id}: no call waits for it", id=task_id)
            return []
        self._forget(task_id)
        return several

    def _forget(self, task_id: str) -> None:
        assert self.source is not None
        self._retried.discard(task_id)
        self.source.forget(task_id)


class StateCache:
    """The last states of tasks: the most recent ones, and those of calls that are still referenced.

    A result over ``rpc://`` is a message, and is gone once it is delivered. Results may be large, so a
    result that was delivered to a call lives as long as the call.

    :param limit: how many of the others are kept; the oldest is dropped first
    :param max_bytes: what they may take, about
    """

    def __init__(self, limit: int = MAX_STATES, max_bytes: int = MAX_STATE_BYTES) -> None:
        self._limit = limit
        self._max_bytes = max_bytes
        #: Each state with the bytes that it takes.
        self._states: OrderedDict[str, tuple[Mapping[str, Any], int]] = OrderedDict()
        self._bytes = 0
        self._holders: WeakValueDictionary[str, Holder] = WeakValueDictionary()

    def note(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """Keep a state."""
        self._drop(task_id)
        size = size_of(meta, self._max_bytes)
        if size > self._max_bytes:
            return
        self._states[task_id] = meta, size
        self._bytes += size
        while len(self._states) > self._limit or self._bytes > self._max_bytes:
            self._drop(next(iter(self._states)))

    def delivered(self, task_id: str, holder: Holder) -> None:
        """Note which object has the final state."""
        self._drop(task_id)
        self._holders[task_id] = holder

    def get(self, task_id: str) -> Mapping[str, Any] | None:
        """The last state of a task, if it is known."""
        holder = self._holders.get(task_id)
        if holder is not None:
            return holder.meta
        kept = self._states.get(task_id)
        return None if kept is None else kept[0]

    def forget(self, task_id: str) -> None:
        """Know it no longer."""
        self._drop(task_id)
        self._holders.pop(task_id, None)

    def _drop(self, task_id: str) -> None:
        _, size = self._states.pop(task_id, (None, 0))
        self._bytes -= size


def size_of(value: Any, enough: int) -> int:
    """The bytes that a value takes, about.

    :param enough: the size from which on it does not matter how large the value is: counting ends there
    """
    size = 0
    parts = [value]
    while parts and size <= enough:
        part = parts.pop()
        if isinstance(part, str | bytes):
            size += len(part)
        elif isinstance(part, BaseException):
            parts.append(part.args)
        elif isinstance(part, Mapping):
            size += _ITEM * (1 + 2 * len(part))
            if size <= enough:
                parts += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            size += _ITEM * (1 + len(part))
            if size <= enough:
                parts += part
    return size
