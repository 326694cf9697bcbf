"""Makes the demo's first call and watches its processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from twistedcelery.demo.child import Child
from twistedcelery.demo.errors import DemoError
from twistedcelery.wamp.process.client import call_when_ready

__all__ = ["watch"]

#: Seconds to wait for the first result.
_PATIENCE = 60.0

#: Seconds between two checks of the children.
_LOOK = 0.1


def watch(reactor: Any, children: Sequence[Child], port: int, began: float) -> None:
    """Run the reactor: make the first call, print its result, and return on SIGINT, SIGTERM or SIGHUP.

    :param reactor: the reactor to run
    :param began: when the demo started, by the monotonic clock
    :raise DemoError: if a child ends, or the first call fails
    """
    running = _Running(reactor, children)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: reactor.callFromThread(running.stop))
    reactor.callWhenRunning(running.start, port, began)
    reactor.run(installSignalHandlers=False)
    if running.failure is not None:
        running.failure.raiseException()


class _Running:
    """The demo between its start and its end.

    :ivar failure: why the demo ended; ``None`` after a signal
    """

    def __init__(self, reactor: Any, children: Sequence[Child]) -> None:
        self.failure: Failure | None = None
        self._reactor = reactor
        self._children = children
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._stopped = False

    def start(self, port: int, began: float) -> None:
        self._looking.start(_LOOK).addErrback(self.stop)
        call = call_when_ready(self._reactor, port, "realm1", "celery.my_app.tasks.add", 2, 3)
        first: Deferred[object] = ensureDeferred(call)
        first.addTimeout(_PATIENCE, self._reactor)
        first.addCallbacks(_announce, self._explain, callbackArgs=(port, began))
        first.addErrback(self.stop)

    def stop(self, failure: Failure | None = None) -> None:
        """Make `watch` return, or raise the first failure."""
        if not self._stopped:
            self._stopped = True
            self.failure = failure
            self._reactor.stop()

    def _look(self) -> None:
        for child in self._children:
            if child.status is not None:
                raise DemoError(
                    f"the {child.name} ended unexpectedly (status {child.status}):\n{child.tail()}"
                )

    def _explain(self, failure: Failure) -> None:
        logs = "\n\n".join(f"Last output of the {child.name}:\n{child.tail()}" for child in self._children)
        raise DemoError(f"the first call failed: {failure.value!r}\n\n{logs}") from failure.value


def _announce(result: object, port: int, began: float) -> None:
    print(f"celery.my_app.tasks.add(2, 3) = {result}, {time.monotonic() - began:.1f} s after the start")
    print(f"Dashboard: http://127.0.0.1:{port}/ (Ctrl-C stops everything)", flush=True)
