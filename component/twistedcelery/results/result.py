"""Results by id: Celery's ``AsyncResult`` and ``GroupResult``, with Deferreds.

The names are Celery's. What Celery answers after asking the result backend is a Deferred here, a
new one for each access; what needs no question (``id``, ``parent``,
``results``) is the value.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from celery import states
from celery.exceptions import IncompleteStream
from celery.result import AsyncResult
from celery.utils.graph import DependencyGraph, GraphFormatter
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.python.failure import Failure

from twistedcelery._deferreds import all_done, all_of
from twistedcelery.transports.decoding import FINAL_STATES, outcome_of

if TYPE_CHECKING:
    from twistedcelery.results.backend import ResultBackend

__all__ = ["AnyResult", "GroupResult", "TaskResult"]

#: Final states that Celery's own results wait beyond.
_NO_SUCCESS = frozenset({states.IGNORED, states.REJECTED})


class _Result:
    """What a task's result and a group's have in common.

    :ivar id: the id of the task or the group
    :ivar parent: the result that this one follows, in a chain or a chord
    """

    id: str
    parent: AnyResult | None
    _backend: ResultBackend

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        follow_parents: bool = True,
        callback: Callable[[str, Any], object] | None = None,
        **_blocking: Any,
    ) -> Deferred[Any]:
        """Wait for the result. Cancelling the Deferred ends the waiting, not the task.

        :param timeout: seconds; then it fails with `celery.exceptions.TimeoutError`
        :param propagate: ``False``: fire with the exception of a task that failed
        :param follow_parents: whether a parent that fails ends the waiting
        :param callback: called with the id and the value of each task as ``get()`` succeeds
        :param _blocking: Celery's options of how to wait (``interval``, ``no_ack``, ...) mean
            nothing here
        :return: fires with the value, for a group with a list, or fails as Celery's ``get()`` does
        """
        return self._backend.wait(
            self,
            timeout=timeout,
            propagate=propagate,
            follow_parents=follow_parents,
            callback=callback,
        )

    wait = get

    def then(
        self, callback: Callable[[Any], Any], on_error: Callable[[Exception], Any] | None = None
    ) -> Deferred[Any]:
        """Have a function called with this result once it has ended, well or not, as Celery does.

        :param on_error: called with the error where that will not be known
        :return: fires with what is returned
        """
        return self.get(propagate=False).addCallbacks(
            lambda _: callback(self), lambda failure: on_error(failure.value) if on_error else failure
        )

    def __await__(self) -> Generator[Deferred[Any], Any, Any]:
        return self.get().__await__()

    def parents(self) -> Iterator[AnyResult]:
        """The results that this one follows, the nearest first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def family(self) -> Iterator[TaskResult]:
        """The tasks that this result depends on. Some may come twice."""
        stack: list[Any] = [self]
        while stack:
            node = stack.pop()
            if node.parent is not None:
                stack.append(node.parent)
            if node.members is None:
                yield node
            else:
                stack.extend(node.members)

    def leaves(self) -> Iterator[TaskResult]:
        """The tasks whose values make up the result's."""
        raise NotImplementedError

    def revoke_all(self, terminate: bool = False, signal: str = "SIGTERM") -> Deferred[None]:
        """Revoke every task that this result depends on and that is not known to have ended."""
        ids = list(dict.fromkeys(task.id for task in self.family() if task.unknown))
        return self._backend.revoke(ids, terminate, signal)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __str__(self) -> str:
        return self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return other == self.id
        return type(other) is type(self) and other.id == self.id if isinstance(other, _Result) else False


class TaskResult(_Result):
    """One task's state and result. Made by `twistedcelery.TwistedCelery.result`.

    :ivar task_name: where it is known
    :ivar meta: the final result meta, once it is known
    """

    members: None = None

    def __init__(
        self,
        backend: ResultBackend,
        id: str,  # noqa: A002  # Celery's name
        parent: AnyResult | None = None,
        task_name: str | None = None,
        ignored: bool = False,
    ) -> None:
        self._backend = backend
        self.id = id
        self.parent = parent
        self.task_name = task_name
        #: Whether the task has an ignored result: then `get` yields ``None`` at once.
        self.ignored = ignored
        self.meta: Mapping[str, Any] | None = None

    @property
    def task_id(self) -> str:
        """The id."""
        return self.id

    # Asking the backend

    @property
    def state(self) -> Deferred[str]:
        """The state, such as ``"PENDING"``, which is also the state of an unknown task."""
        return self._read("state")

    status = state

    @property
    def result(self) -> Deferred[Any]:
        """The value of a task that has ended, the exception of one that failed, or what a state of
        its own carries; ``None`` before that.
        """
        return self._read("result")

    info = result

    @property
    def traceback(self) -> Deferred[str | None]:
        """The traceback in the worker, as text."""
        return self._read("traceback")

    @property
    def children(self) -> Deferred[list[AnyResult] | None]:
        """The tasks that this one sent."""
        return self._get_meta().addCallback(self._children_of)

    @property
    def date_done(self) -> Deferred[Any]:
        """When it ended, as a `datetime.datetime` in UTC."""
        return self._read("date_done")

    @property
    def name(self) -> Deferred[str | None]:
        """The task's name; as the next ones, with ``result_extended`` alone."""
        return self._read("name")

    @property
    def args(self) -> Deferred[Any]:
        """The task's arguments."""
        return self._read("args")

    @property
    def kwargs(self) -> Deferred[Any]:
        """The task's keyword arguments."""
        return self._read("kwargs")

    @property
    def worker(self) -> Deferred[str | None]:
        """The name of the worker that ran it."""
        return self._read("worker")

    @property
    def retries(self) -> Deferred[int | None]:
        """How often it was retried."""
        return self._read("retries")

    @property
    def queue(self) -> Deferred[str | None]:
        """The queue that it came from."""
        return self._read("queue")

    def ready(self) -> Deferred[bool]:
        """Whether it has ended."""
        return self.state.addCallback(lambda state: state in FINAL_STATES)

    def successful(self) -> Deferred[bool]:
        """Whether it has succeeded."""
        return self.state.addCallback(lambda state: state == states.SUCCESS)

    def failed(self) -> Deferred[bool]:
        """Whether it has failed."""
        return self.state.addCallback(lambda state: state == states.FAILURE)

    def exists(self) -> Deferred[bool]:
        """Whether the backend has anything about this task."""
        return self._backend.exists(self.id)

    def maybe_throw(
        self, propagate: bool = True, callback: Callable[[str, Any], object] | None = None
    ) -> Deferred[Any]:
        """Fail with the exception of a task that has failed; else fire with `result`."""

        def look(meta: Mapping[str, Any]) -> Any:
            outcome = outcome_of(meta)
            if propagate and isinstance(outcome, Failure):
                outcome.raiseException()
            if callback is not None:
                callback(self.id, meta["result"])
            return meta["result"]

        return self._get_meta().addCallback(look)

    maybe_reraise = maybe_throw

    def collect(self, intermediate: bool = False) -> Deferred[list[tuple[AnyResult, Any]]]:
        """Wait for the task, for those that it sent, and so on.

        :param intermediate: go on where a task has not ended, instead of failing with
            `celery.exceptions.IncompleteStream`
        :return: pairs of a result and its value, in Celery's order
        """
        return _collect(self, intermediate)

    def as_list(self) -> list[str]:
        """The ids of the task and of those that it followed, the nearest first."""
        return [self.id, *(parent.id for parent in self.parents())]

    def forget(self) -> Deferred[None]:
        """Delete the result, and those of its parents."""
        self.meta = None
        forgotten = [self._backend.forget(self.id)]
        if self.parent is not None:
            forgotten.append(self.parent.forget())
        return all_done(forgotten)

    def revoke(self, terminate: bool = False, signal: str = "SIGTERM") -> Deferred[None]:
        """Ask all workers to revoke the task.

        :return: fires once the broker has taken the request
        """
        return self._backend.revoke([self.id], terminate, signal)

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any], terminate: bool = False, signal: str = "SIGTERM"
    ) -> Deferred[None]:
        """Ask all workers to revoke the tasks that have these stamps, as Celery's result does: not only
        this one.

        :return: fires once the broker has taken the request
        """
        return self._backend.revoke_by_stamped_headers(headers, terminate, signal)

    def iterdeps(self, intermediate: bool = False) -> Deferred[list[tuple[Any, Any]]]:
        """Pairs of a result and what it has sent, the parent first; the first one's parent is ``None``.

        :param intermediate: go on where a task has not ended, instead of failing with
            `celery.exceptions.IncompleteStream`
        """
        return _dependencies(self, intermediate)

    def get_leaf(self) -> Deferred[Any]:
        """Wait as `collect`, and fire with the value of the last one."""
        return _collect(self, False).addCallback(lambda found: found[-1][1])

    def build_graph(self, intermediate: bool = False, formatter: Any = None) -> Deferred[Any]:
        """What `iterdeps` gives, as a ``celery.utils.graph.DependencyGraph``.

        :param formatter: draws it; ``None``: Celery's own
        """

        def build(found: list[tuple[Any, Any]]) -> Any:
            graph = DependencyGraph(formatter=formatter or GraphFormatter(root=self.id, shape="oval"))
            for parent, node in found:
                graph.add_arc(node)
                if parent is not None:
                    graph.add_edge(parent, node)
            return graph

        return self.iterdeps(intermediate).addCallback(build)

    # For what waits

    @property
    def unknown(self) -> bool:
        """Whether its end is still to come."""
        return self.meta is None and not self.ignored

    @property
    def is_single(self) -> bool:
        """Whether one task is all that it depends on, and the end of that one is still to come."""
        return self.parent is None and self.unknown

    @property
    def failed_already(self) -> bool:
        """Whether it is known to have ended otherwise than well."""
        if self.meta is None:
            return False
        state = self.meta["status"]
        return state in states.PROPAGATE_STATES or (state in _NO_SUCCESS and not self.ignored)

    @property
    def known_children(self) -> list[AnyResult] | None:
        """The tasks that it sent, if it has ended."""
        return self._children_of(self.meta) if self.meta is not None else None

    def end(self, meta: Mapping[str, Any]) -> None:
        """Keep the final state."""
        self.meta = meta

    def leaves(self) -> Iterator[TaskResult]:
        """The task itself."""
        yield self

    def as_tuple(self) -> tuple[Any, ...]:
        """As Celery stores it."""
        return (self.id, self.parent and self.parent.as_tuple()), None

    def _get_meta(self) -> Deferred[Mapping[str, Any]]:
        if self.meta is not None:
            return succeed(self.meta)

        def keep(meta: Mapping[str, Any]) -> Mapping[str, Any]:
            if meta["status"] in FINAL_STATES:
                self.meta = meta
            return meta

        return self._backend.meta(self.id).addCallback(keep)

    def _read(self, name: str) -> Deferred[Any]:
        """What Celery's own result makes of the meta."""

        def read(meta: Mapping[str, Any]) -> Any:
            result = AsyncResult.__new__(AsyncResult)
            # All it needs to answer; without a backend it does no I/O.
            result.__dict__["_cache"] = meta
            return getattr(result, name)

        return self._get_meta().addCallback(read)

    def _children_of(self, meta: Mapping[str, Any]) -> list[AnyResult] | None:
        children = meta.get("children")
        return None if children is None else [self._backend.from_tuple(child) for child in children]


class GroupResult(_Result):
    """The results of a group's members, in their order: a collection, as Celery's ``ResultSet``.

    :ivar results: the members
    """

    def __init__(
        self,
        backend: ResultBackend,
        id: str,  # noqa: A002  # Celery's name
        results: Sequence[AnyResult] = (),
        parent: AnyResult | None = None,
    ) -> None:
        self._backend = backend
        self.id = id
        self.results = list(results)
        self.parent = parent

    join = join_native = _Result.get

    # The collection

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[AnyResult]:
        return iter(self.results)

    def __getitem__(self, index: int) -> AnyResult:
        return self.results[index]

    def __bool__(self) -> bool:
        return True

    def add(self, result: AnyResult) -> None:
        """Add a member, unless it is one. A `get` that has begun does not wait for it."""
        if result not in self.results:
            self.results.append(result)

    def update(self, results: Iterable[AnyResult]) -> None:
        """Add several members, as `add`."""
        for result in results:
            self.add(result)

    def remove(self, result: AnyResult | str) -> None:
        """Take out a member, itself or by its id.

        :raises KeyError: it is none
        """
        for number, member in enumerate(self.results):
            if member == result:
                del self.results[number]
                return
        raise KeyError(result)

    def discard(self, result: AnyResult | str) -> None:
        """Take out a member, if it is one."""
        with contextlib.suppress(KeyError):
            self.remove(result)

    def clear(self) -> None:
        """Take out all members."""
        self.results.clear()

    # Asking the members

    @property
    def members(self) -> list[AnyResult]:
        """The members."""
        return self.results

    @property
    def children(self) -> list[AnyResult]:
        """The members, as Celery has it."""
        return self.results

    @property
    def known_children(self) -> list[AnyResult]:
        """The members."""
        return self.results

    @property
    def is_single(self) -> bool:
        """A group is not."""
        return False

    def end(self, meta: Mapping[str, Any]) -> None:
        """A group has no final state of its own."""

    def ready(self) -> Deferred[bool]:
        """Whether all members have ended."""
        return self._of_all("ready").addCallback(all)

    def waiting(self) -> Deferred[bool]:
        """Whether some members have not ended."""
        return self.ready().addCallback(lambda ready: not ready)

    def successful(self) -> Deferred[bool]:
        """Whether all members have succeeded."""
        return self._of_all("successful").addCallback(all)

    def failed(self) -> Deferred[bool]:
        """Whether some members have failed."""
        return self._of_all("failed").addCallback(any)

    def completed_count(self) -> Deferred[int]:
        """How many members have succeeded."""
        return self._of_all("successful").addCallback(sum)

    def maybe_throw(
        self, callback: Callable[[str, Any], object] | None = None, propagate: bool = True
    ) -> Deferred[None]:
        """Fail with the exception of the first member that has failed."""
        looked = [member.maybe_throw(callback=callback, propagate=propagate) for member in self.results]
        return all_done(looked)

    maybe_reraise = maybe_throw

    def forget(self) -> Deferred[None]:
        """Delete the members' results."""
        return all_done([member.forget() for member in self.results])

    def revoke(self, terminate: bool = False, signal: str = "SIGTERM") -> Deferred[None]:
        """Ask all workers to revoke the members.

        :return: fires once the broker has taken the request
        """
        return self._backend.revoke([task.id for task in self.leaves()], terminate, signal)

    def save(self) -> Deferred[None]:
        """Keep in the result backend which tasks the group has, for `restore`."""
        return self._backend.save_group(self)

    def delete(self) -> Deferred[None]:
        """Undo `save`."""
        return self._backend.delete_group(self.id)

    def restore(self) -> Deferred[GroupResult | None]:
        """Read what `save` kept under this id; ``None`` where there is nothing."""
        return self._backend.restore_group(self.id)

    def leaves(self) -> Iterator[TaskResult]:
        """The members' tasks."""
        for member in self.results:
            yield from member.leaves()

    def as_tuple(self) -> tuple[Any, ...]:
        """As Celery stores it."""
        parent = self.parent and self.parent.as_tuple()
        return (self.id, parent), [member.as_tuple() for member in self.results]

    def _of_all(self, question: str) -> Deferred[list[Any]]:
        return all_of(getattr(member, question)() for member in self.results)


AnyResult: TypeAlias = TaskResult | GroupResult


@inlineCallbacks
def _dependencies(root: Any, intermediate: bool) -> Generator[Deferred[Any], Any, list[tuple[Any, Any]]]:
    """As ``AsyncResult.iterdeps``, without waiting for anything.

    :param root: a `TaskResult`
    :param intermediate: go on where a task has not ended
    :return: pairs of a result's parent, ``None`` for the root's, and the result
    :raises IncompleteStream: a task has not ended
    """
    found: list[tuple[Any, Any]] = []
    stack = deque([(None, root)])
    while stack:
        parent, node = stack.popleft()
        found.append((parent, node))
        if (yield node.ready()):
            children = node.members if node.members is not None else (yield node.children)
            stack.extend((node, child) for child in children or [])
        elif not intermediate:
            raise IncompleteStream
    return found


@inlineCallbacks
def _collect(root: Any, intermediate: bool) -> Generator[Deferred[Any], Any, list[tuple[Any, Any]]]:
    """As ``AsyncResult.collect``.

    :param root: a `TaskResult`
    :param intermediate: go on where a task has not ended
    :return: pairs of a result and its value
    :raises IncompleteStream: a task has not ended
    """
    found: list[tuple[Any, Any]] = []
    waiting = deque([root])
    while waiting:
        node = waiting.popleft()
        value = yield node.get()
        found.append((node, value))
        if (yield node.ready()):
            children = node.members if node.members is not None else (yield node.children)
            waiting.extend(children or [])
        elif not intermediate:
            raise IncompleteStream
    return found
