"""Runs blocking work in one dedicated thread beside the reactor."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters, settle
from twistedcelery._types import Clock, Timer
from twistedcelery.errors import Disconnected
from twistedcelery.transports.deadlines import cancel_after

__all__ = ["STOP_LIMIT", "DedicatedThread", "ThreadReactor"]

#: Seconds that `DedicatedThread.stop` waits for a thread which is inside a blocking call.
STOP_LIMIT = 3.0

#: Jobs that run before the thread looks after its own work again.
_JOBS_PER_STEP = 100

T = TypeVar("T")


class ThreadReactor(Clock, Protocol):
    """As `twisted.internet.interfaces.IReactorTime` and ``IReactorFromThreads``."""

    def callFromThread(self, function: Callable[..., object], /, *args: Any, **kwargs: Any) -> None: ...


class DedicatedThread:
    """Runs jobs one after another in a thread of its own, which starts with the first job.

    It is a daemon thread: a blocking call that never returns does not keep the process alive.

    :param reactor: where posted callbacks run
    :param name: of the thread, as debuggers show it
    :param step: called in the thread between jobs, for work that goes on without them. Returns the
        seconds until it wants to be called again if no job comes; ``None``: not before the next job.
    :param finish: called in the thread as its last work, to release what it holds
    """

    _log = Logger()

    def __init__(
        self,
        reactor: ThreadReactor,
        name: str,
        step: Callable[[], float | None] | None = None,
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._reactor = reactor
        self._name = name
        self._step = step
        self._finish = finish
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._post_lock = threading.Lock()
        self._post_scheduled = False
        self._thread: threading.Thread | None = None
        self._ended = False
        self._stop_timer: Timer | None = None
        self._stop_waiters: Waiters[None] = Waiters()
        self._calls: dict[Deferred[Any], None] = {}
        #: Set once `stop` was called; a job that waits should wait on it.
        self.stopping = threading.Event()

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job in the thread. It must not raise. After `stop` nothing is run."""
        if self.stopping.is_set():
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def call(
        self,
        job: Callable[[], T],
        timeout: float | None = None,
        given_up: Callable[[], Exception] = CancelledError,
    ) -> Deferred[T]:
        """Run a job in the thread whose outcome is wanted.

        Cancelling it has no effect on the job.

        :param timeout: seconds to wait for the outcome; ``None``: there is no limit
        :param given_up: makes the error where the time is over, or the Deferred is cancelled
        :return: fires with what the job returns, or fails with what it raises. It fails with
            `Disconnected` once the thread is stopped.
        """
        if self.stopping.is_set():
            return fail(Disconnected("the client was disconnected"))
        answer: Deferred[T] = Deferred(lambda cancelled: cancelled.errback(given_up()))
        self._calls[answer] = None
        answer.addBoth(self._call_ended, answer)
        if timeout is not None:
            cancel_after(timeout, answer, self._reactor)
        self.submit(partial(self._run_call, job, answer))
        return answer

    def has_jobs(self) -> bool:
        """Whether jobs wait, as the thread sees it."""
        return not self._jobs.empty()

    def post(self, callback: Callable[..., None], *args: Any) -> None:
        """From the thread: call back on the reactor's thread, in the order posted.

        Callbacks posted close together share one wake-up of the reactor.
        """
        with self._post_lock:
            self._posted.append((callback, args))
            if self._post_scheduled:
                return
            self._post_scheduled = True
        self._reactor.callFromThread(self._run_posted)

    def stop(self) -> Deferred[None]:
        """Stop after the current job; queued jobs are dropped.

        :return: fires once the thread has ended, or `STOP_LIMIT` seconds later at most: a thread
            that hangs in a blocking call is left behind. It ends when that call returns.
        """
        self.stopping.set()
        if self._thread is None or self._ended:
            return succeed(None)
        stopped = self._stop_waiters.wait()
        if self._stop_timer is None:
            self._jobs.put(None)
            self._stop_timer = self._reactor.callLater(STOP_LIMIT, self._abandon)
        for answer in list(self._calls):
            settle(answer, Failure(Disconnected("the client was disconnected before the answer came")))
        return stopped

    # -- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while not self.stopping.is_set():
            delay = self._guarded(self._step) if self._step is not None else None
            job = self._next_job(delay)
            for _ in range(_JOBS_PER_STEP):
                if job is None or self.stopping.is_set():
                    break
                self._guarded(job)
                job = self._next_job(0)
            else:
                if job is not None:
                    self._guarded(job)
        if self._finish is not None:
            self._guarded(self._finish)
        self._reactor.callFromThread(self._has_ended)

    def _next_job(self, delay: float | None) -> Callable[[], None] | None:
        try:
            return self._jobs.get(timeout=delay) if delay != 0 else self._jobs.get_nowait()
        except Empty:
            return None

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception:
            # It is a defect of this package: the work handles the errors of brokers. The thread serves
            # every call, so it goes on.
            self._log.failure("Unexpected error in thread {name}", name=self._name)
            return None

    def _run_call(self, job: Callable[[], Any], answer: Deferred[Any]) -> None:
        outcome: Any
        try:
            outcome = job()
        except Exception:
            outcome = Failure()
        self.post(settle, answer, outcome)

    # -- on the reactor ----------------------------------------------------------------------

    def _run_posted(self) -> None:
        with self._post_lock:
            self._post_scheduled = False
            posted, self._posted = self._posted, deque()
        for callback, args in posted:
            try:
                callback(*args)
            except Exception:
                # One receiver's defect must not swallow what was posted for the others.
                self._log.failure("Unexpected error in a callback of thread {name}", name=self._name)

    def _call_ended(self, outcome: Any, answer: Deferred[Any]) -> Any:
        del self._calls[answer]
        return outcome

    def _has_ended(self) -> None:
        if self._thread is not None:
            # This call was the last thing it did, so this does not wait.
            self._thread.join()
        self._stopped()

    def _abandon(self) -> None:
        self._stop_timer = None
        self._log.warn(
            "Thread {name} is still inside a blocking call, {limit} s after it was stopped; "
            "it ends when that call returns",
            name=self._name,
            limit=STOP_LIMIT,
        )
        self._stopped()

    def _stopped(self) -> None:
        self._ended = True
        if self._stop_timer is not None:
            self._stop_timer.cancel()
            self._stop_timer = None
        self._stop_waiters.fire(None)
