"""Finds out which tasks running workers have, and goes on finding out.

Workers are asked for their tasks when the bridge begins, whenever one comes online, whenever the connection
to the broker is there again, and every `ASK_INTERVAL`. One that says goodbye is gone `FAREWELL` later. One
that is killed says nothing, but neither does one whose pool is ``solo`` while it runs a task: it counts as
gone after `GRACE` without a heartbeat or a reply. While there is no connection to the broker nobody is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from twisted.logger import Logger

from twistedcelery.errors import Disconnected, TwistedCeleryError
from twistedcelery.wamp.workers.announced import ITEM, AnnouncedTasks, parse_registered

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from twistedcelery._types import Clock, Timer

__all__ = ["ASK_INTERVAL", "GRACE", "Discovery"]

#: Seconds between two questions to all workers.
ASK_INTERVAL = 30.0

#: Seconds without a heartbeat or a reply after which a worker counts as gone.
GRACE = 60.0

#: Seconds in which a worker that has said goodbye may be there again: one that has lost the broker says
#: it late, just before it says hello.
FAREWELL = 3.0

#: Seconds without a reply after which no more are waited for. Each counts as soon as it comes.
ASK_TIMEOUT = 5.0

#: Seconds between two looks at who is silent.
TICK = 5.0

#: Seconds from a worker's first word to the question. It says that it is online just before it begins to
#: listen; and of many that start at once, as many as possible are asked together.
FIRST_ASK_DELAY = 0.5

#: Seconds until a worker that has not replied is asked again.
NEXT_ASK_DELAY = 5.0

_log = Logger()


class Client(Protocol):
    """What discovery needs of a `twistedcelery.TwistedCelery`."""

    @property
    def control(self) -> Any:
        """Commands and queries to workers."""

    def events(self, handlers: Mapping[str, Any], **options: Any) -> Any:
        """A stream of events."""


@dataclass(slots=True)
class _Worker:
    """A worker that has been heard of.

    :ivar heard: when, the last time
    :ivar asked: when it was asked for its tasks, the last time
    :ivar told: whether it has told them since it came online
    """

    heard: float
    asked: float = float("-inf")
    told: bool = False


class Discovery:
    """Keeps account of the workers of one application.

    :param changed: as of `twistedcelery.wamp.workers.announced.AnnouncedTasks`
    """

    def __init__(self, client: Client, clock: Clock, changed: Callable[[str, bool | None], None]) -> None:
        self._client = client
        self._clock = clock
        self._tasks = AnnouncedTasks(changed)
        self._workers: dict[str, _Worker] = {}
        self._leaving: dict[str, Timer] = {}
        self._stream: Any = None
        self._waiting = False
        self._tick: Timer | None = None
        self._next_ask: Timer | None = None
        self._asked_all = float("-inf")
        self._said: str | None = None
        self._stopped = False

    def __len__(self) -> int:
        """The number of workers whose tasks are known."""
        return sum(worker.told for worker in self._workers.values())

    def start(self) -> None:
        """Begin, unless that has happened. It ends with `stop`."""
        if self._stream is not None or self._stopped:
            return
        handlers = {
            "worker-online": self._online,
            "worker-heartbeat": self._heartbeat,
            "worker-offline": self._offline,
        }
        try:
            self._stream = self._client.events(handlers, routing_key="worker.#")
        except TwistedCeleryError as error:
            _log.error("the workers' tasks cannot be discovered: {error}", error=error)
            return
        self._look_around()

    def stop(self) -> None:
        """End; nothing changes any more. The stream itself ends with the client."""
        self._stopped = True
        for timer in (self._tick, self._next_ask, *self._leaving.values()):
            if timer is not None and timer.active():
                timer.cancel()

    # Now and then

    def _look_around(self) -> None:
        self._tick = self._clock.callLater(TICK, self._look_around)
        now = self._clock.seconds()
        if not self._stream.connected:
            # What nobody can hear tells of nobody's silence.
            for worker in self._workers.values():
                worker.heard = now
            self._wait_for_connection()
            return
        for name in [name for name, worker in self._workers.items() if now - worker.heard > GRACE]:
            _log.info("the worker {name} has been silent for {seconds:g} s", name=name, seconds=GRACE)
            self._forget(name)
        if now - self._asked_all >= ASK_INTERVAL:
            self._ask_all()

    def _wait_for_connection(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._stream.ready.addCallbacks(self._connected, self._no_connection)

    def _connected(self, _: object) -> None:
        self._waiting = False
        if not self._stopped:
            self._ask_all()

    def _no_connection(self, failure: Failure) -> None:
        # The stream itself has said that there will be none.
        failure.trap(TwistedCeleryError)

    # Asking

    def _ask_all(self) -> None:
        self._asked_all = self._clock.seconds()
        self._ask(None)

    def _ask_later(self) -> None:
        if self._next_ask is None or not self._next_ask.active():
            self._next_ask = self._clock.callLater(FIRST_ASK_DELAY, self._ask_those_who_have_not_told)

    def _ask_those_who_have_not_told(self) -> None:
        now = self._clock.seconds()
        asked = [name for name, worker in self._workers.items() if self._is_to_be_asked(worker, now)]
        for name in asked:
            self._workers[name].asked = now
        if asked:
            self._ask(asked)

    def _is_to_be_asked(self, worker: _Worker, now: float) -> bool:
        return not worker.told and now - worker.asked >= NEXT_ASK_DELAY

    def _ask(self, destination: list[str] | None) -> None:
        asking = self._client.control.inspect(
            destination=destination, timeout=ASK_TIMEOUT, callback=self._replied
        )
        asking.registered(ITEM).addCallbacks(self._answered, self._unanswered)

    def _replied(self, reply: Mapping[str, Any]) -> None:
        for name, registered in reply.items():
            tasks = parse_registered(registered)
            if tasks is None or self._stopped:
                # A worker that could not tell, or the last word to somebody who does not listen.
                continue
            worker = self._workers.setdefault(name, _Worker(0.0))
            worker.heard, worker.told = self._clock.seconds(), True
            self._tasks.put(name, tasks)

    def _answered(self, _: object) -> None:
        self._said = None

    def _unanswered(self, failure: Failure) -> None:
        # It is asked again. Without a broker nobody needs to be told twice.
        reason = str(failure.value)
        if not self._stopped and not failure.check(Disconnected) and reason != self._said:
            self._said = reason
            _log.warn("workers could not be asked for their tasks: {reason}", reason=reason)

    # What workers say

    def _online(self, event: Mapping[str, Any]) -> None:
        worker = self._hear(event)
        if worker is not None:
            # It may be another program than before. What it had stays until it has told.
            worker.told, worker.asked = False, float("-inf")
            self._ask_later()

    def _heartbeat(self, event: Mapping[str, Any]) -> None:
        worker = self._hear(event)
        if worker is not None and self._is_to_be_asked(worker, self._clock.seconds()):
            self._ask_later()

    def _offline(self, event: Mapping[str, Any]) -> None:
        name = event.get("hostname")
        if isinstance(name, str) and name in self._workers and not self._stopped:
            self._stay(name)
            self._leaving[name] = self._clock.callLater(FAREWELL, self._forget, name)

    def _hear(self, event: Mapping[str, Any]) -> _Worker | None:
        name = event.get("hostname")
        if self._stopped or not isinstance(name, str):
            return None
        self._stay(name)
        worker = self._workers.setdefault(name, _Worker(0.0))
        worker.heard = self._clock.seconds()
        return worker

    def _stay(self, name: str) -> None:
        timer = self._leaving.pop(name, None)
        if timer is not None and timer.active():
            timer.cancel()

    def _forget(self, name: str) -> None:
        self._stay(name)
        del self._workers[name]
        self._tasks.remove(name)
