"""Follows one message on its way to the broker until it is settled, whatever the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import PublishError, PublishUnconfirmed, TwistedCeleryError

__all__ = ["Publication"]


class Publication:
    """One message on its way. It is settled once; later outcomes are ignored.

    :param withdraw: called when its caller cancels
    :ivar done: its caller's
    :ivar sent: whether the broker may have it, over the present link or an earlier one
    :ivar returned: why it reached no queue
    """

    __slots__ = ("_withdraw", "done", "message", "returned", "sent", "settled")

    def __init__(self, message: OutgoingMessage, withdraw: Callable[[Publication], None]) -> None:
        self.message = message
        self._withdraw = withdraw
        self.done: Deferred[None] = Deferred(self._cancelled)
        self.sent = False
        self.returned: str | None = None
        self.settled = False

    def succeed(self) -> None:
        """The broker has it. Does nothing once settled."""
        if not self.settled:
            self.settled = True
            self.done.callback(None)

    def fail(self, error: TwistedCeleryError | CancelledError) -> None:
        """It did not, or may not, get there. Does nothing once settled."""
        if not self.settled:
            self.settled = True
            self.done.errback(Failure(error))

    def unconfirmed(self, why: str) -> PublishUnconfirmed:
        """The error of a message that was sent, and whose confirmation did not come."""
        return PublishUnconfirmed(
            f"{self} was sent, but not confirmed: {why}. The broker may or may not have it; "
            "retry=True allows it to be sent again under the same id"
        )

    def __str__(self) -> str:
        message = self.message
        if message.task_id is None:
            return f"the message to {message.exchange or message.routing_key!r}"
        return f"task {message.headers.get('task', '')} [{message.task_id}]".replace("  ", " ")

    def _cancelled(self, _: Deferred[Any]) -> None:
        self._withdraw(self)
        error: PublishError | CancelledError = CancelledError()
        if self.sent:
            error = self.unconfirmed("its caller cancelled before the confirmation came")
        self.fail(error)
