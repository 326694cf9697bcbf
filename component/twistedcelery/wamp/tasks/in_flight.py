"""Sends tasks, and keeps those that have not ended."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from celery.utils import uuid

from twistedcelery.wamp.arguments import ArgumentsRefused, check_sendable
from twistedcelery.wamp.items import TooManyItems
from twistedcelery.wamp.options import (
    NotAllowed,
    OptionError,
    check_times,
    is_scheduled,
    parse_options,
    times,
)
from twistedcelery.wamp.tasks.followed import WAITING, FollowedTask
from twistedcelery.wamp.tasks.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from autobahn.wamp.exception import ApplicationError

    from twistedcelery import TaskDeferred, TwistedCelery
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.events.merge import EventMergers
    from twistedcelery.wamp.invocation import Caller
    from twistedcelery.wamp.tasks.exposed import ExposedTask
    from twistedcelery.wamp.tasks.slots import Slot

__all__ = ["InFlight"]


class InFlight:
    """Sends tasks, within the limits for all and for each caller, and follows each to its end.

    :ivar totals: how many tasks were ``sent``, and how many ended as ``succeeded``, ``failed``,
        ``revoked`` or ``undelivered``; how many calls were refused as ``overloaded``
    """

    def __init__(self, client: TwistedCelery, context: Context, mergers: EventMergers) -> None:
        self._client = client
        self._config = context.config
        self._errors = context.errors
        self._context = context
        self._mergers = mergers
        self._tasks: dict[str, tuple[FollowedTask, Slot]] = {}
        #: Calls that follow a task which was sent before; see `twistedcelery.TaskDeferred.sent_before`.
        self._joined: dict[FollowedTask, Slot] = {}
        self._slots = Slots(context.config, context.clock)
        self.totals: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tasks) + len(self._joined)

    def __iter__(self) -> Iterator[FollowedTask]:
        return iter([followed for followed, _ in self._tasks.values()] + list(self._joined))

    @property
    def scheduled(self) -> int:
        """How many of them wait for their ETA."""
        return len(self._slots.scheduled)

    @property
    def waiting_for_worker(self) -> int:
        """How many of them wait since no worker consumes their queue."""
        return sum(followed.state == WAITING for followed, _ in self._tasks.values())

    def find(self, task_id: str) -> FollowedTask | None:
        """The task with this id, if it is in flight."""
        found = self._tasks.get(task_id)
        return None if found is None else found[0]

    def revoked(self, task_id: str) -> None:
        """The workers were asked to revoke a task, which may be in flight: it gives its place to others."""
        if task_id in self._tasks:
            self._tasks[task_id][1].release()

    def send(
        self,
        task: ExposedTask,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Any,
        caller: Caller,
    ) -> FollowedTask:
        """Send a task with a caller's options, and follow it.

        :param options: ``celery_options`` as they came
        :raise ApplicationError: if nothing was sent
        """
        self._admit(caller, is_scheduled(options))
        config, declared = self._config, task.send_options()
        try:
            parsed = parse_options(options, config.allow_options)
            due_in, expires_in = self._times(parsed)
            limit = config.expires_of(task.name) or self._times(declared)[1] or config.max_expires
            check_times(due_in, expires_in, config.max_countdown, limit)
        except NotAllowed as error:
            raise self._errors.make("not_allowed", f"celery_options: {error}") from error
        except OptionError as error:
            raise self._errors.make("invalid_arguments", f"celery_options: {error}") from error
        return self._start(task, args, kwargs, declared, parsed, caller)

    def start(
        self,
        task: ExposedTask,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        caller: Caller,
    ) -> FollowedTask:
        """Send a task with options of the configuration, and follow it.

        :param options: keywords of ``send_task``
        :raise ApplicationError: if nothing was sent
        """
        self._admit(caller, is_scheduled(options))
        return self._start(task, args, kwargs, task.send_options(), options, caller)

    def refusal(self, caller: Caller, scheduled: bool = False) -> ApplicationError | None:
        """The error of a task that cannot be sent now, since there are too many; ``None``: there is room.

        It is cheap, and takes no more than who calls: a flood must cost next to nothing.

        :param scheduled: whether the task waits for its ETA, which takes room of another kind as well
        """
        refusal = self._slots.why_not(caller, scheduled)
        if refusal is None:
            return None
        self.totals["overloaded"] += 1
        return self._errors.make("overloaded", refusal)

    def _admit(self, caller: Caller, scheduled: bool) -> None:
        error = self.refusal(caller, scheduled)
        if error is not None:
            raise error

    def _times(self, options: Mapping[str, Any]) -> tuple[float, float | None]:
        return times(options, self._context.wall_clock(), self._context.timezone)

    def _start(
        self,
        task: ExposedTask,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        declared: Mapping[str, Any],
        options: Mapping[str, Any],
        caller: Caller,
    ) -> FollowedTask:
        try:
            # Before anything else goes through them.
            check_sendable(self._config.max_items, args=args, kwargs=kwargs, celery_options=options)
            task.check_arguments(args, kwargs)
        except (TypeError, ArgumentsRefused, TooManyItems) as error:
            raise self._errors.make("invalid_arguments", f"{task.name}: {error}") from error
        expires = self._config.expires_of(task.name)
        if expires is not None and {**declared, **options}.get("expires") is None:
            options = {**options, "expires": self._times(options)[0] + expires}
        return self._follow(task, args, kwargs, declared, options, caller)

    def _follow(
        self,
        task: ExposedTask,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        declared: Mapping[str, Any],
        options: Mapping[str, Any],
        caller: Caller,
    ) -> FollowedTask:
        chosen = {**declared, **options}
        # Only Celery's event stream reports a task with an ignored result. The leader publishes it, like
        # foreign tasks; hence Celery's id.
        ignored = bool(chosen.get("ignore_result"))
        task_id = uuid() if ignored else self._context.ids.new()
        call = self._call(task, list(args), dict(kwargs), task_id, declared, options, caller.headers())
        arguments = {"args": list(args), "kwargs": dict(kwargs)} if self._config.publish_arguments else {}
        mergers = None if call.sent_before or ignored else self._mergers
        followed = FollowedTask(call, caller, arguments, self._context, mergers, self._ended)
        slot = self._slots.take(followed, *self._times(chosen))
        if call.sent_before:
            self._joined[followed] = slot
        else:
            self.totals["sent"] += 1
            self._tasks[followed.task_id] = followed, slot
        followed.start()
        return followed

    def _call(
        self,
        task: ExposedTask,
        args: list[Any],
        kwargs: dict[str, Any],
        task_id: str,
        declared: Mapping[str, Any],
        options: Mapping[str, Any],
        headers: Mapping[str, Any],
    ) -> TaskDeferred:
        """Send it by name, which is faster, unless its class has a part in sending it."""
        # An eager task would run here, and keep everybody waiting.
        if task.sends_its_own_way and task.task is not None and not task.task.app.conf.task_always_eager:
            # The caller's headers are not for its apply_async, which may give headers itself.
            own = self._client.task(task.task, headers)
            return own.apply_async(args, kwargs, task_id=task_id, **options)
        chosen = {**declared, **options}
        headers = {**(chosen.get("headers") or {}), **headers}
        if headers:
            chosen["headers"] = headers
        return self._client.send_task(task.name, args=args, kwargs=kwargs, task_id=task_id, **chosen)

    def _ended(self, followed: FollowedTask, outcome: str) -> None:
        slot = self._joined.pop(followed, None)
        if slot is None:
            self.totals[outcome] += 1
            _, slot = self._tasks.pop(followed.task_id)
        slot.end()
