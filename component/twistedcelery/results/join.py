"""Joins the results of a canvas's tasks to one outcome, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery import states
from twisted.python.failure import Failure

from twistedcelery.errors import ResultError, ResultLost, TwistedCeleryError
from twistedcelery.transports.decoding import outcome_of

if TYPE_CHECKING:
    from twistedcelery.results.result import AnyResult, TaskResult

__all__ = ["Join", "Member"]

#: The outcome of what has not ended.
_PENDING = object()

UpdateCallback = Callable[[str, Any], None]


class Join:
    """Waits for all the tasks that a result depends on, and ends as ``get()`` of Celery's does.

    A parent that fails ends it, even if the result succeeds. A group ends with its first
    failing member; where its members are looked at as they come, one that is the body of a chord
    fails with what the worker made of its header's failure.

    :param root: the result
    :param in_order: whether the members of a group are looked at one after another, as Celery does
        for result backends without a native join, or as they come
    :param ended: called once, with the value or a `Failure`
    :param updated: called with each state that is not final, of the tasks whose value is waited for
    :param propagate: whether errors of tasks are failures; they are values otherwise
    :param follow_parents: whether parents are looked at
    :param on_value: called with the id and the value of each member of a group, or of the task, as soon as
        Celery would look at it; what it raises ends the join
    """

    def __init__(
        self,
        root: AnyResult,
        ended: Callable[[Any], None],
        updated: UpdateCallback | None = None,
        *,
        in_order: bool,
        propagate: bool = True,
        follow_parents: bool = True,
        on_value: Callable[[str, Any], object] | None = None,
    ) -> None:
        self._on_value = on_value
        self._not_passed_on: list[AnyResult] = [root] if root.members is None else list(root.members)
        self._root = root
        self._ended = ended
        self._updated = updated
        self._in_order = in_order
        self._propagate = propagate
        self._follow_parents = follow_parents and propagate
        self._tasks: dict[str, list[TaskResult]] = {}
        for task in root.family() if self._follow_parents else root.leaves():
            self._tasks.setdefault(task.id, []).append(task)
        leaves = {task.id: task for task in root.leaves()}
        self._needed = {task_id for task_id, task in leaves.items() if task.unknown}
        self._leaves = frozenset(leaves)
        self._failed = any(task.failed_already for tasks in self._tasks.values() for task in tasks)
        self.over = False
        #: One for each task that is waited for.
        self.members = [
            Member(self, task_id, tasks[0].task_name or "?")
            for task_id, tasks in self._tasks.items()
            if any(task.unknown for task in tasks)
        ]

    def check(self) -> None:
        """Pass on values that are known; end now, if all are."""
        if self._on_value is not None:
            self._pass_on_values(self._on_value)
        if self.over:
            return
        if not self._needed or self._failed:
            self._evaluate()

    def task(self, task_id: str) -> TaskResult:
        """One of the tasks."""
        return self._tasks[task_id][0]

    def stop(self) -> None:
        """End without an outcome."""
        self.over = True
        # The waiting call refers to this; without the cycle it is freed when it is dropped.
        self._ended = _ignore
        self._updated = self._on_value = None

    def task_updated(self, task_id: str, state: str, meta: Any) -> None:
        """A task has a state that is not final."""
        if self._updated is not None and not self.over and task_id in self._leaves:
            self._updated(state, meta)

    def task_ended(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """A task has ended."""
        for task in self._tasks[task_id]:
            task.end(meta)
            self._failed = self._failed or task.failed_already
        self._needed.discard(task_id)
        if not self.over:
            self.check()

    def task_lost(self, task_id: str, error: TwistedCeleryError) -> None:
        """What became of a task will not be known."""
        # A reply that cannot be read may be of a task that has done its part. One that is lost has not.
        passing = isinstance(error, ResultError) and not isinstance(error, ResultLost)
        if not self.over and (task_id in self._leaves or not passing):
            self._end(Failure(error))

    def _pass_on_values(self, on_value: Callable[[str, Any], object]) -> None:
        for result in tuple(self._not_passed_on):
            value = self._value(result, is_member=result is not self._root)
            if value is _PENDING and not self._in_order:
                continue
            if value is _PENDING or isinstance(value, Failure):
                return
            self._not_passed_on.remove(result)
            try:
                on_value(result.id, value)
            except Exception:
                # Like Celery, whose ``get()`` raises it.
                self._end(Failure())
                return

    def _evaluate(self) -> None:
        value = self._value(self._root)
        if value is not _PENDING:
            self._end(value)

    def _end(self, outcome: Any) -> None:
        self.over = True
        self._ended(outcome)

    def _value(self, result: AnyResult, *, is_member: bool = False) -> Any:
        """The value, a `Failure`, or `_PENDING`."""
        if self._follow_parents:
            for parent in reversed(list(result.parents())):
                if is_member and not self._in_order and parent.members is not None:
                    continue
                failure = _first_failure(parent)
                if failure is not None:
                    _fail_too(result, failure)
                    return failure
        if result.members is None:
            return self._value_of_task(result)
        if self._propagate and not self._in_order:
            failure = _first_failure(result)
            if failure is not None:
                return failure
        values = []
        for member in result.members:
            value = self._value(member, is_member=True)
            if value is _PENDING or isinstance(value, Failure):
                return value
            values.append(value)
        return values

    def _value_of_task(self, task: Any) -> Any:
        if task.ignored:
            return None
        if task.meta is None:
            return _PENDING
        outcome = outcome_of(task.meta)
        return outcome.value if isinstance(outcome, Failure) and not self._propagate else outcome


class Member:
    """Waits for one task on behalf of a `Join`: a `twistedcelery.results.pending.Waiting`."""

    __slots__ = ("_join", "task_id", "task_name")

    def __init__(self, join: Join, task_id: str, task_name: str) -> None:
        self._join = join
        self.task_id = task_id
        self.task_name = task_name

    @property
    def holder(self) -> TaskResult:
        return self._join.task(self.task_id)

    def update(self, state: str, meta: Any) -> None:
        self._join.task_updated(self.task_id, state, meta)

    def finish(self, meta: Mapping[str, Any]) -> None:
        self._join.task_ended(self.task_id, meta)

    def fail(self, error: TwistedCeleryError) -> None:
        self._join.task_lost(self.task_id, error)


def _ignore(_outcome: Any) -> None:
    """Take the outcome of a join that was stopped."""


def _fail_too(result: AnyResult, failure: Failure) -> None:
    """Fail the tasks of a result whose parent has failed, as workers do with the rest of a chain.

    Workers do not do it where the parent is the body of a chord. Such a task would stay ``PENDING``.
    """
    for task in result.leaves():
        if task.unknown:
            task.end({"status": states.FAILURE, "result": failure.value, "traceback": None, "children": None})


def _first_failure(result: AnyResult) -> Failure | None:
    """Of the tasks of a result that have failed, the first in order."""
    for task in result.leaves():
        if task.meta is not None and task.failed_already:
            failure: Failure = outcome_of(task.meta)
            return failure
    return None
