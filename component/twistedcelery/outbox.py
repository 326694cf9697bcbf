"""The way of calls to the broker: encoded, watched, published, and withdrawn when cancelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery.call import TaskDeferred
from twistedcelery.encoder import EncodedTask, Encoder
from twistedcelery.errors import NoResultBackend, TwistedCeleryError
from twistedcelery.message import OutgoingMessage
from twistedcelery.pacing import Pacer
from twistedcelery.pending import PendingCalls
from twistedcelery.transports.interface import Publisher, ResultSource

__all__ = ["Outbox"]

_log = Logger()


class Outbox:
    """Takes calls to the broker, over one transport.

    A call that it is given waits in `pending` already, and is discarded there when it does not get
    out, or has no result to wait for.

    :param pacer: spreads bursts over reactor turns
    :param reactor: for time
    :param publish_timeout: seconds for the broker to take a message that sets no limit of its own
    :param revoke: called with a call that was cancelled when the broker had, or may have, its task
    """

    def __init__(
        self,
        encoder: Encoder,
        publisher: Publisher,
        results: ResultSource,
        pending: PendingCalls,
        pacer: Pacer,
        reactor: Any,
        *,
        publish_timeout: float,
        revoke: Callable[[TaskDeferred], None],
    ) -> None:
        self._encoder = encoder
        self._publisher = publisher
        self._results = results
        self._pending = pending
        self._pacer = pacer
        self._reactor = reactor
        self._publish_timeout = publish_timeout
        self._revoke = revoke

    @property
    def connected(self) -> bool:
        """Whether a task sent now would go out at once, and its result come back."""
        return self._publisher.connected and self._results.connected

    def options(self, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """As `twistedcelery.encoder.Encoder.options`."""
        return self._encoder.options(positional, named)

    def send(
        self,
        call: TaskDeferred,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> None:
        """Send a call's task; what goes wrong fails the call.

        :param options: from `options`
        """
        if call.called:
            # Cancelled while it waited for its turn.
            return
        try:
            encoded = self._encoder.task(call.task_name, args, kwargs, call.task_id, options)
        except TwistedCeleryError as error:
            self._pending.discard(call)
            call.fail_published(Failure(error))
            return
        watching = None if encoded.ignored else self._results.watch(call.task_id)
        if watching is None:
            self._publish(call, encoded, encoded.message)
        else:
            self._publish_once(watching, call, encoded)

    def withdraw(self, call: TaskDeferred) -> None:
        """Keep the task of a cancelled call from being run: drop its message, or have it revoked."""
        if call.publication is None:
            return
        if call.publication.called:
            self._revoke(call)
        else:
            call.publication.cancel()

    def revoke(self, task_ids: Sequence[str], terminate: bool, signal: str) -> Deferred[None]:
        """Tell all workers to revoke tasks; fires once the broker has taken the command."""
        return self._publisher.publish(self._encoder.revoke(task_ids, terminate=terminate, signal=signal))

    def broadcast(self, mailbox: Any, **arguments: Any) -> Deferred[None]:
        """Send a control command; fires once the broker has taken it.

        :param arguments: as of `twistedcelery.encoder.Encoder.broadcast`, which may raise
        """
        return self._publisher.publish(self._encoder.broadcast(mailbox, **arguments))

    def forget(self, task_id: str) -> None:
        """Nobody waits for the task any more."""
        self._results.forget(task_id)

    def close(self) -> Deferred[Any]:
        """Fires, without failing, once both halves of the transport have stopped."""
        halves = (self._publisher, self._results)
        return DeferredList([maybeDeferred(half.close).addErrback(_log_close_failure) for half in halves])

    def _publish_once(self, watching: Deferred[None], call: TaskDeferred, encoded: EncodedTask) -> None:
        """Publish when the result source is ready for the task, within the time for publishing."""
        message = encoded.message
        allowed = message.confirm_timeout or self._publish_timeout
        deadline = self._reactor.seconds() + allowed

        def publish() -> None:
            if not call.called:
                left = max(0.0, deadline - self._reactor.seconds())
                self._publish(call, encoded, replace(message, confirm_timeout=left))

        def ready(_: None) -> None:
            # Thousands may have waited for the same moment.
            if self._pacer.has_room():
                publish()
            else:
                self._pacer.enqueue(publish)

        def failed(failure: Failure) -> None:
            if self._pending.discard(call):
                call.fail_published(failure)

        watching.addTimeout(allowed, self._reactor, lambda failure, _: failure)  # its own reason says more
        watching.addCallback(ready).addErrback(failed)

    def _publish(self, call: TaskDeferred, encoded: EncodedTask, message: OutgoingMessage) -> None:
        call.publication = self._publisher.publish(message)
        if encoded.event is not None and not call.publication.called:
            self._publisher.publish(encoded.event).addErrback(_log_event_lost)
        call.publication.addCallbacks(
            self._published, self._not_published, callbackArgs=(call, encoded.ignored), errbackArgs=(call,)
        )

    def _published(self, _: None, call: TaskDeferred, ignored: bool) -> None:
        if call.called:
            # A fast worker's reply can overtake the broker's confirmation.
            return
        call.mark_published()
        if ignored:
            if self._pending.discard(call):
                call.finish_unheard()
        elif not self._results.available and self._pending.discard(call):
            call.fail(NoResultBackend(f"task {call.task_name} was sent; {NoResultBackend.__doc__}"))

    def _not_published(self, failure: Failure, call: TaskDeferred) -> None:
        if self._pending.discard(call):
            call.fail_published(failure)
        elif call.cancelled and not failure.check(CancelledError):
            # Its caller cancelled after the message had left: the broker may have the task.
            self._revoke(call)


def _log_event_lost(failure: Failure) -> None:
    # The event informs monitors; the task itself is published, or fails, on its own.
    _log.warn("a task-sent event could not be published: {error}", error=failure.value)


def _log_close_failure(failure: Failure) -> None:
    # Nobody can do anything about it any more, but it must be seen.
    _log.failure("disconnecting left something behind", failure=failure)
