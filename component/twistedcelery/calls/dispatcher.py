"""Makes the calls of a client, and has each sent when it is its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from copy import deepcopy
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any

from celery.utils import uuid
from twisted.python.failure import Failure

from twistedcelery.calls.call import GroupDeferred, TaskDeferred
from twistedcelery.calls.dispatch import Dispatch, Route
from twistedcelery.encoding.app_view import sends_its_own_way
from twistedcelery.encoding.encoder import allowed_options
from twistedcelery.encoding.signatures import is_composed
from twistedcelery.errors import Disconnected, InvalidCall, TwistedCeleryError
from twistedcelery.transports.turns import TURN_BUDGET

if TYPE_CHECKING:
    from twistedcelery._types import Clock, Timer
    from twistedcelery.encoding.message import Encoded
    from twistedcelery.transports.binding import Binding, BoundTransport
    from twistedcelery.workers.revoker import Revoker

__all__ = ["Dispatcher", "Pacer"]


class Pacer:
    """Runs jobs in order, and no longer than a budget in any one reactor turn.

    Encoding a task costs up to 0.3 ms, so a loop over thousands of ``send_task`` would hold up
    everything else in the process. The first jobs of a turn run at once; when the budget is
    spent, the rest wait for the turns that follow.

    :param reactor: for ``callLater``
    :param clock: seconds of real time, such as `time.perf_counter`
    :param budget: seconds of each turn that jobs may take
    """

    def __init__(self, reactor: Clock, clock: Callable[[], float], budget: float = TURN_BUDGET) -> None:
        self._reactor = reactor
        self._clock = clock
        self._budget = budget
        self._jobs: deque[Callable[[], None]] = deque()
        self._turn: Timer | None = None
        self._turn_ends = 0.0

    def has_room(self) -> bool:
        """Whether a job may run now: nothing is queued, and this turn has budget left."""
        if self._turn is None:
            self._begin_turn()
            return True
        return not self._jobs and self._clock() < self._turn_ends

    def enqueue(self, job: Callable[[], None]) -> None:
        """Run a job in a later turn. It must not raise."""
        self._jobs.append(job)
        if self._turn is None:
            self._begin_turn()

    def stop(self) -> None:
        """Forget the queued jobs."""
        self._jobs.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _begin_turn(self) -> None:
        self._turn_ends = self._clock() + self._budget
        self._turn = self._reactor.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        if not self._jobs:
            return
        self._begin_turn()
        while self._jobs and self._clock() < self._turn_ends:
            self._jobs.popleft()()


class Dispatcher:
    """Sends tasks by name, tasks of applications, and canvases. No method of these raises.

    :param binding: has the transport
    :param revoker: revokes tasks
    """

    def __init__(self, binding: Binding, route: Route, revoker: Revoker) -> None:
        self._binding = binding
        self._route = route
        self._revoker = revoker

    def __len__(self) -> int:
        return len(self._route.in_flight)

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        positional: Sequence[Any],
        options: Mapping[str, Any],
    ) -> TaskDeferred:
        """As `twistedcelery.TwistedCelery.send_task`."""
        try:
            if not isinstance(name, str):
                raise InvalidCall(
                    f"send_task() takes the name of a task, not {name!r:.200}; to call a task itself, use "
                    "task(the_task).apply_async(...)"
                )
            transport = self._binding.use()
            named = transport.encoder.options(positional, options)
        except TwistedCeleryError as error:
            return self._refused(error, options, str(name))
        call = TaskDeferred(named.pop("task_id", None) or uuid(), name, self._revoker)
        at_once = self._route.pacer.has_room() or transport.encoder.is_observed()
        if not at_once:
            # The caller may change them before their turn comes.
            (args, kwargs, headers), at_once = _copied(
                lambda copy: copy((args, kwargs, named.get("headers")))
            )
            if headers is not None:
                named["headers"] = headers
        encode = partial(transport.encoder.task, name, args, kwargs, call.task_id, named)
        return self._send(call, encode, transport, at_once)

    def apply_task(
        self,
        task: Any,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
        headers: Mapping[str, Any] | None = None,
    ) -> TaskDeferred:
        """As ``apply_async`` of a task.

        :param headers: what the task's message has besides those that its ``apply_async`` gives it
        """
        name = task.name
        try:
            transport = self._binding.use()
            options = allowed_options(options, "apply_async")
            bound = transport.canvas_encoder.task(task)
            own_way = sends_its_own_way(bound)
            at_once = own_way or self._route.pacer.has_room() or transport.encoder.is_observed()
            if not at_once:
                (args, kwargs, options), at_once = _copied(lambda copy: copy((args, kwargs, options)))
        except TwistedCeleryError as error:
            return self._refused(error, options, name)
        task_id = options.pop("task_id", None) or uuid()
        apply_async = partial(bound.apply_async, args, kwargs, task_id=task_id, **options)
        encode = _encoding(
            transport,
            f"task {name!r}",
            apply_async,
            options.get("retry") is True,
            own_way=own_way,
            headers=headers,
        )
        if own_way:
            return self._send_encoded(name, encode, transport, task_id)
        return self._send(TaskDeferred(task_id, name, self._revoker), encode, transport, at_once)

    def apply_signature(
        self,
        signature: Any,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> TaskDeferred:
        """As `twistedcelery.TwistedCelery.apply_async`."""
        if not isinstance(signature, Mapping) or "task" not in signature:
            return self._refused(InvalidCall(f"{signature!r:.200} is no signature"), options, "?")
        name = str(signature["task"])
        own: Mapping[str, Any] = signature.get("options") or {}
        try:
            transport = self._binding.use()
            options = allowed_options(options, "apply_async")
            resend = options.get("retry", own.get("retry")) is True
            make = transport.canvas_encoder.signature
            is_canvas = is_composed(signature)
            own_way = not is_canvas and transport.canvas_encoder.sends_its_own_way(name)
            at_once = is_canvas or own_way or self._route.pacer.has_room() or transport.encoder.is_observed()
            if at_once:
                bound = make(signature)
            else:
                (bound, args, kwargs, options), at_once = _copied(
                    lambda copy: (make(signature, copy), *copy((args, kwargs, options)))
                )
        except TwistedCeleryError as error:
            return self._refused(error, options, name)
        if is_canvas:
            rebound = transport.canvas_encoder.options
            apply_async = partial(bound.apply_async, args, rebound(kwargs or {}), **rebound(options))
            return self._send_encoded(name, _encoding(transport, name, apply_async, resend), transport)
        task_id = options.pop("task_id", None) or own.get("task_id") or uuid()
        apply_async = partial(bound.apply_async, args, kwargs, task_id=task_id, **options)
        encode = _encoding(transport, f"task {name!r}", apply_async, resend, own_way=own_way)
        if own_way:
            return self._send_encoded(name, encode, transport, task_id)
        return self._send(TaskDeferred(task_id, name, self._revoker), encode, transport, at_once)

    def end_all(self) -> None:
        """End every call with `Disconnected`."""
        self._route.pacer.stop()
        self._route.preparing.stop()
        for dispatch in list(self._route.in_flight):
            dispatch.fail(
                Disconnected(
                    f"task {dispatch.task_name} [{dispatch.task_id}]: the client was disconnected before "
                    "its result came"
                )
            )

    def _send(
        self, call: TaskDeferred, encode: Callable[[], Encoded], transport: BoundTransport, at_once: bool
    ) -> TaskDeferred:
        dispatch = Dispatch(call, encode, transport, self._route)
        if at_once:
            dispatch.start()
        else:
            context = copy_context()
            self._route.pacer.enqueue(lambda: context.run(dispatch.start))
        return call

    def _send_encoded(
        self, name: str, encode: Callable[[], Encoded], transport: BoundTransport, task_id: str | None = None
    ) -> TaskDeferred:
        """Encode at once, whatever the turn: the ids of a canvas are chosen as it is encoded, and that of a
        task by its own ``apply_async``, which may also give the result of an earlier call.

        :param task_id: for a call that has no other
        """
        try:
            encoded = encode()
        except BaseException as error:
            # As in Dispatch.start: an eager task may raise anything.
            return self._refused(error, {"task_id": task_id}, name)
        result = encoded.result
        cls = GroupDeferred if hasattr(result, "results") else TaskDeferred
        call = cls(str(result.id or task_id), getattr(result, "task_name", None) or name, self._revoker)
        call.sent_before = encoded.sends_nothing
        return self._send(call, lambda: encoded, transport, at_once=True)

    def _refused(self, error: BaseException, options: Mapping[str, Any], name: str) -> TaskDeferred:
        call = TaskDeferred(options.get("task_id") or uuid(), name, self._revoker)
        call.fail_published(Failure(error))
        return call


#: Nothing can change them.
_CONSTANTS = frozenset({bool, bytes, float, int, str, NoneType})


def _copy(argument: Any) -> Any:
    """As `copy.deepcopy`, which takes longer than everything else that a waiting call needs."""
    cls = type(argument)
    if cls in _CONSTANTS:
        return argument
    if cls is tuple:
        return tuple(map(_copy, argument))
    return deepcopy(argument)


def _encoding(
    transport: BoundTransport, what: str, apply_async: Callable[[], Any], resend: bool, **ways: Any
) -> Callable[[], Encoded]:
    return partial(transport.canvas_encoder.encode, what, apply_async, resend=resend, **ways)


def _copied(make: Callable[[Callable[[Any], Any]], Any]) -> tuple[Any, bool]:
    """What is to be encoded later, safe from its caller.

    :param make: makes it, with a function that copies arguments
    :return: the copy, and whether it must be encoded at once, since it could not be copied. If it
        cannot be serialised either, that is reported as such.
    """
    try:
        return make(_copy), False
    except Exception:
        # Anything may happen in the arguments' own code.
        return make(lambda argument: argument), True
