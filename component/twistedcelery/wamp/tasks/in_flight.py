"""Sends tasks, and keeps those that have not ended."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from celery.utils import uuid

from twistedcelery.wamp.arguments import ArgumentsRefused, check_sendable
from twistedcelery.wamp.items import TooManyItems
from twistedcelery.wamp.options import NotAllowed, OptionError, parse_options
from twistedcelery.wamp.tasks.followed import FollowedTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from twistedcelery import TwistedCelery
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.events.merge import EventMergers
    from twistedcelery.wamp.invocation import Caller
    from twistedcelery.wamp.tasks.exposed import ExposedTask

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
        self._tasks: dict[str, FollowedTask] = {}
        #: How many of them each session has. Undisclosed callers share one count.
        self._by_session: Counter[int | None] = Counter()
        self.totals: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[FollowedTask]:
        return iter(tuple(self._tasks.values()))

    def find(self, task_id: str) -> FollowedTask | None:
        """The task with this id, if it is in flight."""
        return self._tasks.get(task_id)

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
        try:
            parsed = parse_options(options, self._config.allow_options)
        except NotAllowed as error:
            raise self._errors.make("not_allowed", f"celery_options: {error}") from error
        except OptionError as error:
            raise self._errors.make("invalid_arguments", f"celery_options: {error}") from error
        return self.start(task, args, kwargs, parsed, caller)

    def start(
        self,
        task: ExposedTask,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        caller: Caller,
    ) -> FollowedTask:
        """Send a task, and follow it.

        :param options: keywords of ``send_task``
        :raise ApplicationError: if nothing was sent
        """
        self._admit(caller)
        try:
            # Before anything else goes through them.
            check_sendable(self._config.max_items, args=args, kwargs=kwargs, celery_options=options)
            task.check_arguments(args, kwargs)
        except (TypeError, ArgumentsRefused, TooManyItems) as error:
            raise self._errors.make("invalid_arguments", f"{task.name}: {error}") from error
        return self._follow(task, args, kwargs, {**task.send_options(), **options}, caller)

    def _admit(self, caller: Caller) -> None:
        config = self._config
        own_limit = config.max_in_flight_per_caller
        if len(self._tasks) >= config.max_in_flight:
            refusal = f"{config.max_in_flight} tasks are in flight already; try again later"
        elif own_limit is not None and self._by_session[caller.session] >= own_limit:
            refusal = f"{own_limit} of your tasks are in flight already; try again later"
        else:
            return
        self.totals["overloaded"] += 1
        raise self._errors.make("overloaded", refusal)

    def _follow(
        self,
        task: ExposedTask,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        caller: Caller,
    ) -> FollowedTask:
        headers = {**(options.get("headers") or {}), **caller.headers()}
        if headers:
            options = {**options, "headers": headers}
        # Only Celery's event stream reports a task with an ignored result. The leader publishes it, like
        # foreign tasks; hence Celery's id.
        ignored = bool(options.get("ignore_result"))
        task_id = uuid() if ignored else self._context.ids.new()
        call = self._client.send_task(
            task.name, args=list(args), kwargs=dict(kwargs), task_id=task_id, **options
        )
        arguments = {"args": list(args), "kwargs": dict(kwargs)} if self._config.publish_arguments else {}
        followed = FollowedTask(call, caller, arguments, self._context, self._mergers, self._ended)
        if ignored:
            followed.publish_nothing()
        self.totals["sent"] += 1
        self._tasks[followed.task_id] = followed
        self._by_session[caller.session] += 1
        followed.start()
        return followed

    def _ended(self, followed: FollowedTask, outcome: str) -> None:
        self.totals[outcome] += 1
        del self._tasks[followed.task_id]
        session = followed.caller.session
        self._by_session[session] -= 1
        if not self._by_session[session]:
            del self._by_session[session]
