"""Revokes tasks; many at once cost one broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters, settle
from twistedcelery._types import Clock, Timer

if TYPE_CHECKING:
    from twistedcelery.transports.binding import Binding

__all__ = ["Revoker"]


class Revoker:
    """Gathers the revokes of one reactor turn into one control message.

    A caller who goes away may leave thousands of calls to revoke, and every worker receives every
    control message. Celery's ``revoke`` command takes a list of ids.

    :param reactor: for ``callLater``
    :param binding: has the transport that broadcasts
    """

    def __init__(self, reactor: Clock, binding: Binding) -> None:
        self._reactor = reactor
        self._binding = binding
        self._gathered: dict[tuple[bool, str], list[tuple[str, Deferred[None]]]] = {}
        self._turn: Timer | None = None
        self._on_their_way = 0
        self._idle: Waiters[None] = Waiters()

    def revoke(self, task_id: str, terminate: bool = False, signal: str = "SIGTERM") -> Deferred[None]:
        """Revoke a task.

        :param terminate: kill the process that runs it, if one does
        :param signal: the name of the signal to kill it with
        :return: fires once the broker has taken the command, or fails with a
            `twistedcelery.PublishError`
        """
        done: Deferred[None] = Deferred()
        self._gathered.setdefault((terminate, signal), []).append((task_id, done))
        if self._turn is None:
            self._turn = self._reactor.callLater(0, self._send_gathered)
        return done

    def flush(self) -> Deferred[None]:
        """Send what is gathered, now.

        :return: fires once no command is on its way any more, however each of them ended
        """
        self._send_gathered()
        idle = self._idle.wait()
        self._check_idle()
        return idle

    def _send_gathered(self) -> None:
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        self._turn = None
        gathered, self._gathered = self._gathered, {}
        for (terminate, signal), revokes in gathered.items():
            task_ids = [task_id for task_id, _ in revokes]
            waiting = [done for _, done in revokes]
            self._on_their_way += 1
            maybeDeferred(self._send, task_ids, terminate, signal).addBoth(self._sent, waiting)

    def _send(self, task_ids: Sequence[str], terminate: bool, signal: str) -> Deferred[None]:
        # While the client disconnects, what there is may still be used.
        transport = self._binding.bound or self._binding.use()
        message = transport.encoder.revoke(task_ids, terminate=terminate, signal=signal)
        return transport.publisher.publish(message)

    def _sent(self, outcome: Failure | None, waiting: Sequence[Deferred[None]]) -> None:
        self._on_their_way -= 1
        for done in waiting:
            settle(done, outcome)
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._on_their_way:
            self._idle.fire(None)
