"""Discovers which tasks the running workers have.

It asks workers for their tasks at the start, whenever one comes online, whenever the broker is connected
again, and every `ASK_INTERVAL`. A worker that reports itself offline is removed `FAREWELL` later. A killed
worker reports nothing, but neither does one with the pool ``solo`` while it runs a task. So a silent worker
is removed after `GRACE` without a heartbeat or a reply. Without a connection to the broker, no worker is
removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from twistedcelery._logging import first_few
from twistedcelery.errors import Disconnected, TwistedCeleryError
from twistedcelery.wamp.tasks.announced import ITEM, AnnouncedTasks, parse_registered

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from twistedcelery import EventStream, TwistedCelery
    from twistedcelery._types import Clock, Timer

__all__ = ["ASK_INTERVAL", "GRACE", "Discovery"]

#: Seconds between two queries to all workers.
ASK_INTERVAL = 30.0

#: Seconds without a heartbeat or a reply after which a worker is removed.
GRACE = 60.0

#: Seconds in which a worker that reported itself offline may be back: one that lost the broker sends that
#: report late, just before it comes online again.
FAREWELL = 3.0

#: Seconds to wait for replies. Each counts as soon as it comes.
ASK_TIMEOUT = 5.0

#: Seconds between two checks for silent workers.
TICK = 5.0

#: Seconds from a worker's first event to the query. A worker reports that it is online just before it
#: listens for commands; and many that start at once are asked together.
FIRST_ASK_DELAY = 0.5

#: Seconds until a worker that has not replied is asked again.
NEXT_ASK_DELAY = 5.0

_log = Logger()


@dataclass(slots=True)
class _Worker:
    """A worker.

    :ivar seen: when its last event or reply came
    :ivar asked: when it was last asked for its tasks
    :ivar replied: whether it has replied since it came online
    """

    seen: float
    asked: float = float("-inf")
    replied: bool = False


class Discovery:
    """Keeps track of the workers of one application, and of their tasks.

    :param changed: as `twistedcelery.wamp.tasks.announced.AnnouncedTasks`
    """

    def __init__(
        self, client: TwistedCelery, clock: Clock, changed: Callable[[str, bool | None], None]
    ) -> None:
        self._client = client
        self._clock = clock
        self._tasks = AnnouncedTasks(changed)
        self._workers: dict[str, _Worker] = {}
        self._leaving: dict[str, Timer] = {}
        self._stream: EventStream | None = None
        self._waiting = False
        self._tick: Timer | None = None
        self._next_ask: Timer | None = None
        self._asked_all = float("-inf")
        self._logged: str | None = None
        self._stopped = False

    def __len__(self) -> int:
        """The number of workers whose tasks are known."""
        return sum(worker.replied for worker in self._workers.values())

    def start(self) -> None:
        """Begin. Does nothing the second time, or after `stop`."""
        if self._stream is not None or self._stopped:
            return
        handlers = {
            "worker-online": self._online,
            "worker-heartbeat": self._heartbeat,
            "worker-offline": self._offline,
        }
        try:
            stream = self._stream = self._client.events(handlers, routing_key="worker.#")
        except TwistedCeleryError as error:
            _log.error("the workers' tasks cannot be discovered: {error}", error=error)
            return
        self._check(stream)

    def stop(self) -> None:
        """End. Nothing changes any more; the client closes the stream."""
        self._stopped = True
        for timer in (self._tick, self._next_ask, *self._leaving.values()):
            if timer is not None and timer.active():
                timer.cancel()

    # Periodic checks

    def _check(self, stream: EventStream) -> None:
        self._tick = self._clock.callLater(TICK, self._check, stream)
        now = self._clock.seconds()
        if not stream.connected:
            # Without a connection, silence means nothing.
            for worker in self._workers.values():
                worker.seen = now
            self._wait_for_connection(stream)
            return
        for name in [name for name, worker in self._workers.items() if now - worker.seen > GRACE]:
            _log.info("the worker {name} has been silent for {seconds:g} s", name=name, seconds=GRACE)
            self._forget(name)
        if now - self._asked_all >= ASK_INTERVAL:
            self._ask_all()

    def _wait_for_connection(self, stream: EventStream) -> None:
        if not self._waiting:
            self._waiting = True
            stream.ready.addCallbacks(self._connected, self._no_connection)

    def _connected(self, _: object) -> None:
        self._waiting = False
        if not self._stopped:
            self._ask_all()

    def _no_connection(self, failure: Failure) -> None:
        # The stream itself has logged it.
        failure.trap(TwistedCeleryError)

    # Asking

    def _ask_all(self) -> None:
        self._asked_all = self._clock.seconds()
        self._ask(None)

    def _ask_later(self) -> None:
        if self._next_ask is None or not self._next_ask.active():
            self._next_ask = self._clock.callLater(FIRST_ASK_DELAY, self._ask_missing)

    def _ask_missing(self) -> None:
        now = self._clock.seconds()
        asked = [name for name, worker in self._workers.items() if self._is_due(worker, now)]
        for name in asked:
            self._workers[name].asked = now
        if asked:
            self._ask(asked)

    def _is_due(self, worker: _Worker, now: float) -> bool:
        return not worker.replied and now - worker.asked >= NEXT_ASK_DELAY

    def _ask(self, destination: list[str] | None) -> None:
        asking = self._client.control.inspect(
            destination=destination, timeout=ASK_TIMEOUT, callback=self._replied
        )
        asking.registered(ITEM).addCallbacks(self._answered, self._unanswered)

    def _replied(self, reply: Mapping[str, Any]) -> None:
        for name, registered in reply.items():
            tasks = parse_registered(registered)
            if tasks is None or self._stopped:
                # No list of tasks, or a reply after the end.
                continue
            worker = self._workers.setdefault(name, _Worker(0.0))
            worker.seen, worker.replied = self._clock.seconds(), True
            _log_changes(name, *self._tasks.put(name, tasks))

    def _answered(self, _: object) -> None:
        self._logged = None

    def _unanswered(self, failure: Failure) -> None:
        # They are asked again. The same reason is logged once.
        reason = str(failure.value)
        if not self._stopped and not failure.check(Disconnected) and reason != self._logged:
            self._logged = reason
            _log.warn("workers could not be asked for their tasks: {reason}", reason=reason)

    # Events of workers

    def _online(self, event: Mapping[str, Any]) -> None:
        worker = self._seen(event)
        if worker is not None:
            # It may run another program than before. Its tasks stay until it has replied.
            worker.replied, worker.asked = False, float("-inf")
            self._ask_later()

    def _heartbeat(self, event: Mapping[str, Any]) -> None:
        worker = self._seen(event)
        if worker is not None and self._is_due(worker, self._clock.seconds()):
            self._ask_later()

    def _offline(self, event: Mapping[str, Any]) -> None:
        name = event.get("hostname")
        if isinstance(name, str) and name in self._workers and not self._stopped:
            self._stay(name)
            self._leaving[name] = self._clock.callLater(FAREWELL, self._forget, name)

    def _seen(self, event: Mapping[str, Any]) -> _Worker | None:
        name = event.get("hostname")
        if self._stopped or not isinstance(name, str):
            return None
        self._stay(name)
        worker = self._workers.setdefault(name, _Worker(0.0))
        worker.seen = self._clock.seconds()
        return worker

    def _stay(self, name: str) -> None:
        timer = self._leaving.pop(name, None)
        if timer is not None and timer.active():
            timer.cancel()

    def _forget(self, name: str) -> None:
        self._stay(name)
        del self._workers[name]
        _log_changes(name, [], self._tasks.remove(name))


def _log_changes(worker: str, appeared: Sequence[str], disappeared: Sequence[str]) -> None:
    for names, text in ((appeared, "has new tasks"), (disappeared, "was the last one with these tasks")):
        if names:
            _log.info(
                "the worker {worker!r:.255} {text}: {names}",
                worker=worker,
                text=text,
                names=first_few([f"{name!r:.255}" for name in sorted(names)]),
            )
