"""Makes results by id, and answers their questions from the result backend or from recent states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import celery.exceptions
import celery.result
from celery import states
from celery.result import EagerResult, ResultSet
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed

from twistedcelery._deferreds import all_done, settle
from twistedcelery.encoding.canvas import parents_first
from twistedcelery.errors import NoResultBackend, TwistedCeleryError, UnsupportedByBackend
from twistedcelery.results.join import Join
from twistedcelery.results.result import AnyResult, GroupResult, TaskResult
from twistedcelery.transports.decoding import FINAL_STATES

if TYPE_CHECKING:
    from twistedcelery._types import Clock
    from twistedcelery.results.pending import PendingResults
    from twistedcelery.transports.binding import Binding, BoundTransport
    from twistedcelery.transports.interface import ResultStore
    from twistedcelery.workers.control import Control
    from twistedcelery.workers.revoker import Revoker

__all__ = ["ResultBackend"]


class ResultBackend:
    """A client's result backend.

    :param reactor: for time
    :param pending: who waits for which task, and the last states, where the backend keeps none
    :param revoker: revokes tasks
    :param control: revokes tasks by their stamps
    """

    def __init__(
        self, reactor: Clock, binding: Binding, pending: PendingResults, revoker: Revoker, control: Control
    ) -> None:
        self._reactor = reactor
        self._binding = binding
        self._pending = pending
        self._seen = pending.states
        self._revoker = revoker
        self._control = control

    # Making results

    def task(self, task_id: str) -> TaskResult:
        """A task's result."""
        return TaskResult(self, task_id)

    def group(self, group_id: str, results: Sequence[AnyResult] = ()) -> GroupResult:
        """A group's result."""
        return GroupResult(self, group_id, results)

    def adopt(self, result: Any, ignored: Collection[str]) -> AnyResult:
        """Celery's result, and those above and below it, as results of the client's.

        :param result: what ``apply_async`` returned while a canvas was encoded
        :param ignored: the ids of tasks with an ignored result
        """
        made: dict[int, AnyResult] = {}
        for node in parents_first(result):
            parent = made[id(node.parent)] if node.parent is not None else None
            if isinstance(node, ResultSet):
                members = [made[id(member)] for member in node.results]
                made[id(node)] = GroupResult(self, str(node.id), members, parent)
                continue
            name = getattr(node, "task_name", None)
            task = TaskResult(self, node.id, parent, name, node.id in ignored)
            if isinstance(node, EagerResult):
                # Celery's get() of one that was ignored or rejected gives nothing.
                task.ignored = task.ignored or node.state not in states.READY_STATES
                task.end({**node._cache, "children": None})  # Celery offers it in parts only  # noqa: SLF001  # see above
            made[id(node)] = task
        return made[id(result)]

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
        """Begin to wait for the tasks of a join.

        :return: fires when no state of theirs is missed; ``None``: it is so already
        """
        return self._pending.add_all(join.members)

    def dismiss(self, join: Join) -> None:
        """Stop waiting for the tasks of a join."""
        join.stop()
        for member in join.members:
            self._pending.discard(member)

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
        try:
            transport = self._transport()
        except TwistedCeleryError as error:
            return fail(error)
        # In a store, Celery overwrites the other final states.
        lasting = FINAL_STATES if transport.store is None else states.READY_STATES
        for task in result.family():
            known = self._seen.get(task.id)
            if known is not None and known["status"] in lasting and task.unknown:
                task.end(known)

        def ended(outcome: Any) -> None:
            self.dismiss(join)
            settle(done, outcome)

        join = Join(
            result,
            ended,
            in_order=transport.in_order,
            propagate=propagate,
            follow_parents=follow_parents,
            on_value=callback,
        )
        done: Deferred[Any] = Deferred(lambda _: self.dismiss(join))
        listening = self.listen(join) or succeed(None)
        join.check()
        listening.addCallback(lambda _: self._look_up(join, transport.store))
        listening.addErrback(ended)
        if timeout is not None:
            done.addTimeout(timeout, self._reactor, _timed_out)  # type: ignore[arg-type]  # a zope interface
        if callback is not None and result.members is not None:
            # Like Celery: with a callback, the final list is empty.
            done.addCallback(lambda _: [])
        return done

    def _look_up(self, join: Join, store: ResultStore | None) -> Deferred[Any] | None:
        """Look up what was stored before the waiting began."""
        if store is None or join.over:
            return None

        def found(meta: Mapping[str, Any], task_id: str) -> None:
            if meta["status"] in FINAL_STATES and not join.over:
                join.task_ended(task_id, meta)

        return all_done(
            store.task_meta(member.task_id).addCallback(found, member.task_id) for member in join.members
        )

    def catch_up(self, task_id: str) -> Deferred[None]:
        """Pass the final state of a task that was sent before, if it has one, to those who wait for it.

        :return: fails with `UnsupportedByBackend` where the result goes to somebody else
        """

        def ask() -> Deferred[None]:
            store = self._transport().store
            known = self._seen.get(task_id)
            if store is not None:
                return store.task_meta(task_id).addCallback(found)
            if known is None and self._pending.waiters_of(task_id) < 2:
                raise UnsupportedByBackend(
                    f"task {task_id} was sent before, by another client; over this result backend the result "
                    "goes to that one alone"
                )
            if known is not None:
                found(known)
            return succeed(None)

        def found(meta: Mapping[str, Any]) -> None:
            if meta["status"] in FINAL_STATES:
                self._pending.state_changed(task_id, meta)

        return maybeDeferred(ask)

    # Asking

    def meta(self, task_id: str) -> Deferred[Mapping[str, Any]]:
        """The last state of a task."""

        def ask() -> Deferred[Mapping[str, Any]]:
            store = self._store()
            if store is not None:
                return store.task_meta(task_id)
            return succeed(self._seen.get(task_id) or {"status": states.PENDING, "result": None})

        return maybeDeferred(ask)

    def exists(self, task_id: str) -> Deferred[bool]:
        """Whether there is a state of a task."""

        def ask() -> Deferred[bool]:
            store = self._store()
            return store.exists(task_id) if store else succeed(self._seen.get(task_id) is not None)

        return maybeDeferred(ask)

    def forget(self, task_id: str) -> Deferred[None]:
        """Delete the state of a task."""

        def ask() -> Deferred[None]:
            self._seen.forget(task_id)
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
        return all_done([self._revoker.revoke(task_id, terminate, signal) for task_id in task_ids])

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any], terminate: bool, signal: str
    ) -> Deferred[Any]:
        """Revoke the tasks that have these stamps."""

        def ask() -> Any:
            return self._control.revoke_by_stamped_headers(headers, terminate=terminate, signal=signal)

        return maybeDeferred(ask)

    def _transport(self) -> BoundTransport:
        transport = self._binding.use()
        if not transport.results.available:
            raise NoResultBackend(NoResultBackend.__doc__)
        return transport

    def _store(self) -> ResultStore | None:
        return self._transport().store

    def _group_store(self, method: str) -> ResultStore:
        store = self._store()
        if store is None:
            # In the words of Celery's rpc backend.
            raise UnsupportedByBackend(f"{method} is not supported by this backend.")
        return store


def _timed_out(_outcome: Any, _timeout: float) -> Any:
    raise celery.exceptions.TimeoutError("The operation timed out.")
