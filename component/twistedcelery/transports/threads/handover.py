"""Hands a message from the reactor, which limits its time, to the thread that sends it."""

from __future__ import annotations

import threading
from typing import Any

from twisted.internet.defer import Deferred

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import PublishUnconfirmed

__all__ = ["Handover"]


class Handover:
    """A message on its way, and the right to decide its fate.

    There is one token. The thread takes it before it sends, the reactor takes it when the time
    is up: the side that comes second knows what happened. A message that the reactor took is never sent.

    :ivar message: what to send
    :ivar deadline: the end of its time, by the reactor's clock
    :ivar done: fires when the broker has the message; its caller's. Cancelling it takes the token;
        what may have been sent by then fails with `PublishUnconfirmed`.
    :ivar last_error: the last failure to connect or to send; written by the thread
    :ivar maybe_sent: whether an earlier attempt may have reached the broker; written by the thread
    """

    __slots__ = ("_token", "deadline", "done", "last_error", "maybe_sent", "message")

    def __init__(self, message: OutgoingMessage, deadline: float) -> None:
        self.message = message
        self.deadline = deadline
        self.done: Deferred[None] = Deferred(self._cancelled)
        self.last_error: Exception | None = None
        self.maybe_sent = False
        self._token = threading.Lock()

    def take(self) -> bool:
        """Take the token; false if the other side has it."""
        return self._token.acquire(blocking=False)

    def give_back(self) -> None:
        """From the thread, which has it: sending failed, and may be tried again."""
        self._token.release()

    @property
    def withdrawn(self) -> bool:
        """As the thread sees it while it does not have the token: the caller does not wait any more."""
        return self._token.locked()

    @property
    def settled(self) -> bool:
        """As the reactor sees it: the caller knows how it ended."""
        return self.done.called

    def _cancelled(self, done: Deferred[Any]) -> None:
        if not self.take() or self.maybe_sent:
            # The caller has to know: a task that may run can still be revoked.
            done.errback(PublishUnconfirmed("cancelled too late: the broker may or may not have the message"))
