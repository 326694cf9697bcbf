"""Receives states and results by Celery's blocking code in a thread."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from kombu.utils.uuid import uuid
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from twistedcelery._deferreds import Waiters
from twistedcelery._types import Timer
from twistedcelery.errors import (
    ConfigurationError,
    Disconnected,
    ResultBackendUnavailable,
    ResultError,
    renewed,
)
from twistedcelery.transports.interface import ReplyReceiver
from twistedcelery.transports.threads.backend import OwnBackend
from twistedcelery.transports.threads.failures import Redactor
from twistedcelery.transports.threads.fetcher import Fetcher
from twistedcelery.transports.threads.thread import DedicatedThread, ThreadReactor

__all__ = ["ThreadedResults"]

_log = Logger()


class ThreadedResults:
    """A `twistedcelery.transports.interface.ResultSource` on one result backend in one thread.

    The backend is made for this thread alone. Backends that announce new states (Redis, ``rpc://``)
    push them, others are polled.

    :param app: the Celery application, whose ``result_backend`` is used
    :param receiver: gets what is found
    :param give_up_after: seconds that the backend may stay silent before the tasks that wait for
        it fail with `twistedcelery.errors.ResultBackendUnavailable`
    :param poll_interval: the least number of seconds between two polls. A poll that takes longer
        is followed by a pause as long as itself.
    """

    available = True

    def __init__(
        self,
        app: Any,
        reactor: ThreadReactor,
        receiver: ReplyReceiver,
        give_up_after: float = 30.0,
        poll_interval: float = 0.025,
    ) -> None:
        self._reactor = reactor
        self._receiver = receiver
        self._give_up_after = give_up_after
        # Each watched task, with the callers that wait for it to be placed.
        self._watched: dict[str, Waiters[None]] = {}
        self._reached = False
        self._trouble = "it was not reached yet"
        self._since = 0.0
        self._watchdog: Timer | None = None
        self._closed = False
        self._reply_to: str | None = None
        self._unusable: ConfigurationError | None = None
        self._keeps_states = False
        queue = uuid()
        try:
            backend = OwnBackend(app, queue)
        except ConfigurationError as error:
            # Each call fails with it; making the client does not.
            self._unusable = error
            self._thread = DedicatedThread(reactor, "twistedcelery-results")
            return
        self._keeps_states = not backend.is_pushed
        if backend.is_rpc:
            self._reply_to = queue
        self._thread = DedicatedThread(
            reactor, "twistedcelery-results", step=self._step, finish=self._release
        )
        self._fetcher = Fetcher(backend, Redactor(app), reactor.seconds, poll_interval, self._thread, self)

    @property
    def connected(self) -> bool:
        """Whether the backend answered when it was last asked."""
        return self._reached and not self._closed

    @property
    def reply_to(self) -> str | None:
        """The queue that an ``rpc://`` backend consumes here; ``None`` with any other backend."""
        return self._reply_to

    def watch(self, task_id: str) -> Deferred[None] | None:
        """As `twistedcelery.transports.interface.ResultSource.watch`.

        ``None`` from a backend that keeps states until they are polled, once it was reached.
        """
        if self._closed:
            return fail(Disconnected("the client was disconnected"))
        if self._unusable is not None:
            return fail(renewed(self._unusable))
        if not self._watched:
            self._since = self._reactor.seconds()
        waiting = self._watched.setdefault(task_id, Waiters())
        self._thread.submit(partial(self._fetcher.watch, task_id))
        if self._watchdog is None:
            self._watchdog = self._reactor.callLater(self._give_up_after, self._check_silence)
        if self._keeps_states and self.connected:
            return None
        return waiting.wait(self._unanswered)

    def forget(self, task_id: str) -> None:
        """Stop reporting on a task. Unknown ids are ignored."""
        if self._watched.pop(task_id, None) is not None:
            self._thread.submit(partial(self._fetcher.forget, task_id))

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.ResultSource.close`.

        Where the thread hangs in a blocking call of a driver it is left behind after
        `twistedcelery.transports.threads.thread.STOP_LIMIT` seconds; it ends with that call and
        does not keep the process alive.
        """
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        stopped = self._thread.stop()
        watched, self._watched = self._watched, {}
        for waiting in watched.values():
            waiting.fail(Disconnected("the client was disconnected before the task was sent"))
        return stopped

    # The fetcher's owner

    def placed(self, task_ids: list[str]) -> None:
        """Let those tasks be published."""
        for task_id in task_ids:
            if task_id in self._watched:
                self._watched[task_id].fire(None)

    def changed(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """Report a state."""
        if task_id in self._watched:
            self._receiver.state_changed(task_id, meta)

    def unreadable(self, task_id: str, error: ResultError) -> None:
        """Report that the state cannot be read."""
        if task_id in self._watched:
            self.forget(task_id)
            self._receiver.reply_failed(task_id, error)

    def reached(self) -> None:
        """Note that the backend answers."""
        _log.debug("the result backend answers")
        self._reached = True
        self._trouble = "it stopped answering"

    def lost(self, reason: str) -> None:
        """Note, and log once, that the backend does not answer."""
        self._reached = False
        self._trouble = reason
        if not self._closed:
            _log.warn("the result backend does not answer, trying again: {reason}", reason=reason)

    def unusable(self, error: ConfigurationError) -> None:
        """Fail what waits."""
        self._fail_watched(error)

    # In the thread

    def _step(self) -> float | None:
        return self._fetcher.step()

    def _release(self) -> None:
        self._fetcher.close()

    # Silence

    def _unanswered(self) -> ResultBackendUnavailable:
        return ResultBackendUnavailable(f"the result backend does not answer: {self._trouble}")

    def _check_silence(self) -> None:
        self._watchdog = None
        if not self._watched:
            return
        silent = self._reactor.seconds() - max(self._since, self._fetcher.answered_at)
        if silent >= self._give_up_after:
            error = ResultBackendUnavailable(
                f"the result backend did not answer for {silent:.0f} s: {self._trouble}"
            )
            self._fail_watched(error)
        if self._watched:
            left = max(self._give_up_after - silent, 0.1)
            self._watchdog = self._reactor.callLater(left, self._check_silence)

    def _fail_watched(self, error: ResultBackendUnavailable | ConfigurationError) -> None:
        for task_id, waiting in list(self._watched.items()):
            self.forget(task_id)
            if waiting:
                waiting.fail(error)
            elif isinstance(error, ResultError):
                self._receiver.reply_failed(task_id, renewed(error))
