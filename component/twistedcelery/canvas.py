"""Canvases as Deferreds: signatures, chains, groups, chords and tasks, sent without blocking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from celery.utils import uuid
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery.call import GroupDeferred, TaskDeferred
from twistedcelery.encoder import allowed_options
from twistedcelery.errors import Disconnected, InvalidCall, TwistedCeleryError
from twistedcelery.sending import CanvasWires, Sending
from twistedcelery.signatures import is_composed

if TYPE_CHECKING:
    from twistedcelery.access import ResultAccess
    from twistedcelery.canvas_encoder import EncodedCanvas
    from twistedcelery.pacing import Pacer

__all__ = ["CanvasCalls"]

_log = Logger()


class CanvasCalls:
    """Sends canvases, and follows each to its end.

    :param pacer: spreads the encoding of many calls over reactor turns
    :param access: waits for results, and revokes tasks
    :param connect: gives the wires; it may raise a `TwistedCeleryError`
    :param publish_timeout: seconds for the broker to take all messages of a canvas
    :param terminate: whether cancelling kills the processes that run the tasks already
    """

    def __init__(
        self,
        pacer: Pacer,
        access: ResultAccess,
        connect: Callable[[], CanvasWires],
        *,
        publish_timeout: float,
        terminate: bool,
    ) -> None:
        self._pacer = pacer
        self._access = access
        self._connect = connect
        self._publish_timeout = publish_timeout
        self._terminate = terminate
        self._sendings: dict[TaskDeferred, Sending | None] = {}

    def __len__(self) -> int:
        return len(self._sendings)

    def apply_signature(
        self,
        signature: Any,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> TaskDeferred:
        """As ``apply_async`` of a signature. It never raises."""
        if not isinstance(signature, Mapping) or "task" not in signature:
            return self._refused(InvalidCall(f"{signature!r:.200} is no signature"), options, "?")
        name = str(signature["task"])
        own: Mapping[str, Any] = signature.get("options") or {}
        try:
            wires = self._connect()
            options = allowed_options(options, "apply_async")
            resend = options.get("retry", own.get("retry")) is True
            at_once = is_composed(signature) or self._pacer.has_room()
            if at_once:
                bound = wires.canvas.signature(signature)
            else:
                (bound, args, kwargs, options), at_once = _copied(
                    lambda copy: (wires.canvas.signature(signature, copy), *copy((args, kwargs, options)))
                )
        except TwistedCeleryError as error:
            return self._refused(error, options, name)
        if is_composed(signature):
            return self._send_composed(
                wires, name, lambda: bound.apply_async(args, kwargs, **options), resend
            )
        task_id = options.pop("task_id", None) or own.get("task_id") or uuid()
        return self._send_task(
            wires,
            name,
            task_id,
            lambda: bound.apply_async(args, kwargs, task_id=task_id, **options),
            resend=resend,
            at_once=at_once,
        )

    def apply_task(
        self, task: Any, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: dict[str, Any]
    ) -> TaskDeferred:
        """As ``apply_async`` of a task. It never raises."""
        try:
            wires = self._connect()
            options = allowed_options(options, "apply_async")
            bound = wires.canvas.task(task)
            at_once = self._pacer.has_room()
            if not at_once:
                (args, kwargs, options), at_once = _copied(lambda copy: copy((args, kwargs, options)))
        except TwistedCeleryError as error:
            return self._refused(error, options, task.name)
        task_id = options.pop("task_id", None) or uuid()
        return self._send_task(
            wires,
            task.name,
            task_id,
            lambda: bound.apply_async(args, kwargs, task_id=task_id, **options),
            resend=options.get("retry") is True,
            at_once=at_once,
        )

    def disconnect(self) -> None:
        """End every call with `Disconnected`."""
        for call, sending in list(self._sendings.items()):
            if call in self._sendings:
                self._forget(call, sending)
                call.fail(
                    Disconnected(
                        f"{call.task_name} [{call.task_id}]: the client was disconnected before its "
                        "result came"
                    )
                )

    def _refused(self, error: BaseException, options: Mapping[str, Any], name: str) -> TaskDeferred:
        call = self._new_call(TaskDeferred, options.get("task_id") or uuid(), name)
        del self._sendings[call]
        call.fail_published(Failure(error))
        return call

    def _new_call(self, cls: type[TaskDeferred], call_id: str, name: str) -> TaskDeferred:
        call = cls(call_id, name, self._cancelled, self._revoke_task)
        self._sendings[call] = None
        return call

    def _send_task(
        self,
        wires: CanvasWires,
        name: str,
        task_id: str,
        apply_async: Callable[[], Any],
        *,
        resend: bool,
        at_once: bool,
    ) -> TaskDeferred:
        """One task: its id is known before it is encoded, which can wait for a later turn."""
        call = self._new_call(TaskDeferred, task_id, name)

        def encode() -> None:
            if call not in self._sendings:
                # Cancelled while it waited for its turn.
                return
            try:
                encoded = wires.canvas.encode(f"task {name!r}", apply_async, self._access, resend=resend)
            except BaseException as error:
                # An eager task may raise anything, and has only this way to its caller.
                del self._sendings[call]
                call.fail_published(Failure(error))
                return
            self._start(wires, call, encoded)

        if at_once:
            encode()
        else:
            context = copy_context()
            self._pacer.enqueue(lambda: context.run(encode))
        return call

    def _send_composed(
        self, wires: CanvasWires, name: str, apply_async: Callable[[], Any], resend: bool
    ) -> TaskDeferred:
        """Several tasks: Celery chooses their ids as it encodes them."""
        try:
            encoded = wires.canvas.encode(name, apply_async, self._access, resend=resend)
        except BaseException as error:
            # As above.
            return self._refused(error, {}, name)
        result = encoded.result
        cls = TaskDeferred if result.members is None else GroupDeferred
        call = self._new_call(cls, result.id, getattr(result, "task_name", None) or name)
        self._start(wires, call, encoded)
        return call

    def _start(self, wires: CanvasWires, call: TaskDeferred, encoded: EncodedCanvas) -> None:
        call.async_result = encoded.result
        sending = self._sendings[call] = Sending(wires, call, encoded, self._ending)
        sending.start(self._access, self._publish_timeout)

    def _revoke_task(self, call_id: str, terminate: bool, signal: str) -> Deferred[None]:
        # A call that has several tasks revokes them by itself.
        return self._access.revoke([call_id], terminate, signal)

    def _cancelled(self, call: TaskDeferred) -> None:
        sending = self._sendings.get(call)
        if call not in self._sendings:
            return
        self._forget(call, sending)
        if sending is None or not sending.withdraw():
            return

        def lost(failure: Failure) -> None:
            # The caller has gone; there is nobody else to tell.
            _log.warn(
                "{task} [{id}] was cancelled, but could not be revoked: {error}",
                task=call.task_name,
                id=call.task_id,
                error=failure.value,
            )

        assert call.async_result is not None
        call.async_result.revoke_all(self._terminate).addErrback(lost)

    def _ending(self, call: TaskDeferred, sending: Sending) -> bool:
        if call not in self._sendings:
            return False
        self._forget(call, sending)
        return True

    def _forget(self, call: TaskDeferred, sending: Sending | None) -> None:
        del self._sendings[call]
        if sending is not None:
            self._access.dismiss(sending.join)


def _copied(make: Callable[[Callable[[Any], Any]], Any]) -> tuple[Any, bool]:
    """What is to be encoded later, safe from its caller.

    :param make: makes it, with a function that copies arguments
    :return: the copy, and whether it must be encoded at once, since it could not be copied. If it
        cannot be serialised either, that is reported as such.
    """
    try:
        return make(deepcopy), False
    except Exception:
        # Anything may happen in the arguments' own code.
        return make(lambda argument: argument), True
