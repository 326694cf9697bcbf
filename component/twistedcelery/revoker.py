"""Revoking tasks: many at once cost one broadcast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer

__all__ = ["Revoker"]

#: ``send(task_ids, terminate, signal)``
Send = Callable[[Sequence[str], bool, str], Deferred[None]]


class Revoker:
    """Gathers the revokes of one reactor turn into one control message.

    A caller who goes away may leave thousands of calls to revoke, and every worker hears every
    control message. Celery's ``revoke`` command takes a list of ids.

    :param reactor: for ``callLater``
    :param send: broadcasts one command
    """

    def __init__(self, reactor: Clock, send: Send) -> None:
        self._reactor = reactor
        self._send = send
        self._gathered: dict[tuple[bool, str], list[tuple[str, Deferred[None]]]] = {}
        self._turn: Timer | None = None
        self._on_their_way = 0
        self._idle_waiters: list[Deferred[None]] = []

    def revoke(self, task_id: str, terminate: bool, signal: str) -> Deferred[None]:
        """Revoke a task.

        :return: fires once the broker has taken the command, or fails with a ``PublishError``
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
        idle: Deferred[None] = Deferred()
        self._idle_waiters.append(idle)
        self._tell_idle()
        return idle

    def _send_gathered(self) -> None:
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        self._turn = None
        gathered, self._gathered = self._gathered, {}
        for (terminate, signal), revokes in gathered.items():
            waiting = [done for _, done in revokes]
            self._on_their_way += 1
            self._send([task_id for task_id, _ in revokes], terminate, signal).addBoth(self._sent, waiting)

    def _sent(self, outcome: Failure | None, waiting: Sequence[Deferred[None]]) -> None:
        self._on_their_way -= 1
        for done in waiting:
            if done.called:
                # Its holder has cancelled it.
                continue
            if isinstance(outcome, Failure):
                done.errback(outcome)
            else:
                done.callback(None)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self._on_their_way:
            return
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)
