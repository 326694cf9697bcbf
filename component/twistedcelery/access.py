"""What results are asked of, and who answers: the result backend, or what was heard of late."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import celery.exceptions
import celery.result
from celery import states
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure

from twistedcelery.errors import NoResultBackend, TwistedCeleryError, UnsupportedByBackend
from twistedcelery.gathering import all_done
from twistedcelery.join import Join
from twistedcelery.results import AnyResult, GroupResult, TaskResult

if TYPE_CHECKING:
    from twistedcelery.pending import PendingCalls
    from twistedcelery.transports.interface import ResultSource, ResultStore

__all__ = ["ResultAccess", "Sources"]


class Sources(Protocol):
    """Where results come from."""

    @property
    def results(self) -> ResultSource:
        """Tells of new states."""

    @property
    def store(self) -> ResultStore | None:
        """Answers questions; ``None``: nobody keeps results."""

    @property
    def in_order(self) -> bool:
        """Whether Celery looks at the members of a group one after another."""


class ResultAccess:
    """Makes results, and answers what they are asked.

    :param reactor: for time
    :param pending: who waits for which task, and the last states, where the backend keeps none
    :param connect: gives the sources; it may raise a `twistedcelery.TwistedCeleryError`
    :param revoke: revokes one task
    :param control: gives the client's ``control``
    """

    def __init__(
        self,
        reactor: Any,
        pending: PendingCalls,
        connect: Callable[[], Sources],
        revoke: Callable[[str, bool, str], Deferred[None]],
        control: Callable[[], Any],
    ) -> None:
        self._pending = pending
        self._recent = pending.recent
        #: For time.
        self.reactor = reactor
        self._connect = connect
        self._revoke = revoke
        self._control = control

    # Making results

    def task(self, task_id: str) -> TaskResult:
        """A task's result."""
        return TaskResult(self, task_id)

    def group(self, group_id: str, results: Sequence[AnyResult] = ()) -> GroupResult:
        """A group's result."""
        return GroupResult(self, group_id, results)

    def from_tuple(self, stored: Any) -> AnyResult:
        """A result as Celery stores it, and those above and below it."""
        if isinstance(stored, celery.result.ResultBase):
            # From a backend that pickles.
            stored = stored.as_tuple()
        address, members = stored
        result_id, parent = address if isinstance(address, (list, tuple)) else (address, None)
        above = self.from_tuple(parent) if parent else None
        if members is None:
            return TaskResult(self, result_id, above)
        return GroupResult(self, result_id, [self.from_tuple(member) for member in members], above)

    # Waiting

    def listen(self, join: Join) -> Deferred[None] | None:
        """Hear of a join's tasks.

        :return: fires when no state of theirs is missed; ``None``: it is so already
        """
        sources = self._connect()
        ready = []
        for member in join.members:
            self._pending.add(member)
            watching = sources.results.watch(member.task_id)
            if watching is not None:
                ready.append(watching)
        return all_done(ready) if ready else None

    def dismiss(self, join: Join) -> None:
        """Hear of a join's tasks no longer."""
        join.stop()
        for member in join.members:
            self._pending.discard(member)

    def wait(
        self,
        result: AnyResult,
        *,
        timeout: float | None,
        propagate: bool,
        follow_parents: bool,
        callback: Callable[[str, Any], object] | None,
    ) -> Deferred[Any]:
        """As ``get()`` of the result."""
        try:
            sources = self._connected()
        except TwistedCeleryError as error:
            return fail(error)
        for task in result.family():
            known = self._recent.get(task.id)
            if known is not None and known["status"] in states.READY_STATES and task.unknown:
                task.end(known)

        def ended(outcome: Any) -> None:
            self.dismiss(join)
            if done.called:
                return
            if isinstance(outcome, Failure):
                done.errback(outcome)
            else:
                done.callback(outcome)

        join = Join(
            result,
            ended,
            in_order=sources.in_order,
            propagate=propagate,
            follow_parents=follow_parents,
            told=callback,
        )
        done: Deferred[Any] = Deferred(lambda _: self.dismiss(join))
        listening = self.listen(join) or succeed(None)
        join.check()
        listening.addCallback(lambda _: self._look_up(join, sources.store))
        listening.addErrback(ended)
        if timeout is not None:
            done.addTimeout(timeout, self.reactor, _timed_out)
        if callback is not None and result.members is not None:
            # As Celery has it: whoever is told of each value does not get them all once more.
            done.addCallback(lambda _: [])
        return done

    def _look_up(self, join: Join, store: ResultStore | None) -> Deferred[Any] | None:
        """Ask for what has happened before anybody listened."""
        if store is None or join.over:
            return None

        def found(meta: Mapping[str, Any], task_id: str) -> None:
            if meta["status"] in states.READY_STATES and not join.over:
                join.task_ended(task_id, meta)

        return all_done(
            store.task_meta(member.task_id).addCallback(found, member.task_id) for member in join.members
        )

    # Asking

    def meta(self, task_id: str) -> Deferred[Mapping[str, Any]]:
        """The last state of a task."""

        def ask() -> Deferred[Mapping[str, Any]]:
            store = self._store()
            if store is not None:
                return store.task_meta(task_id)
            return succeed(self._recent.get(task_id) or {"status": states.PENDING, "result": None})

        return maybeDeferred(ask)

    def exists(self, task_id: str) -> Deferred[bool]:
        """Whether there is a state of a task."""

        def ask() -> Deferred[bool]:
            store = self._store()
            return store.exists(task_id) if store else succeed(self._recent.get(task_id) is not None)

        return maybeDeferred(ask)

    def forget(self, task_id: str) -> Deferred[None]:
        """Delete the state of a task."""

        def ask() -> Deferred[None]:
            self._recent.forget(task_id)
            store = self._store()
            return store.forget(task_id) if store else succeed(None)

        return maybeDeferred(ask)

    def save_group(self, group: GroupResult) -> Deferred[None]:
        """Keep which tasks a group has."""
        return maybeDeferred(lambda: self._group_store("save_group").save_group(group.id, group.as_tuple()))

    def delete_group(self, group_id: str) -> Deferred[None]:
        """Undo `save_group`."""
        return maybeDeferred(lambda: self._group_store("delete_group").delete_group(group_id))

    def restore_group(self, group_id: str) -> Deferred[GroupResult | None]:
        """Read what `save_group` kept."""

        def made(stored: Any) -> Any:
            return None if stored is None else self.from_tuple(stored)

        def ask() -> Deferred[Any]:
            return self._group_store("restore_group").restore_group(group_id)

        return maybeDeferred(ask).addCallback(made)

    def revoke(self, task_ids: Sequence[str], terminate: bool, signal: str) -> Deferred[None]:
        """Revoke tasks."""
        return all_done([self._revoke(task_id, terminate, signal) for task_id in task_ids])

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any], terminate: bool, signal: str
    ) -> Deferred[Any]:
        """Revoke the tasks that have these stamps."""

        def ask() -> Any:
            return self._control().revoke_by_stamped_headers(headers, terminate=terminate, signal=signal)

        return maybeDeferred(ask)

    def _connected(self) -> Sources:
        sources = self._connect()
        if not sources.results.available:
            raise NoResultBackend(NoResultBackend.__doc__)
        return sources

    def _store(self) -> ResultStore | None:
        return self._connected().store

    def _group_store(self, method: str) -> ResultStore:
        store = self._store()
        if store is None:
            # In the words of Celery's rpc backend.
            raise UnsupportedByBackend(f"{method} is not supported by this backend.")
        return store


def _timed_out(_outcome: Any, _timeout: float) -> Any:
    raise celery.exceptions.TimeoutError("The operation timed out.")
