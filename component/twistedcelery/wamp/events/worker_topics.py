"""``celery_admin.worker.*``: which workers are there, as Celery's event stream tells of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twistedcelery.wamp.events.celery_events import time_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twistedcelery._types import Clock, Timer
    from twistedcelery.wamp.events.topics import EventPublisher
    from twistedcelery.wamp.uris import Uris

__all__ = ["CHECK_INTERVAL", "MIN_SILENCE", "WorkerTopics"]

#: A worker is taken for gone after so many of its heartbeats have failed to come, and so many seconds.
#: Celery's own monitors wait for two: with the usual interval, 4 s, which a busy machine takes at times.
MISSED_HEARTBEATS = 3
MIN_SILENCE = 10.0

#: Seconds between two looks at who is silent.
CHECK_INTERVAL = 1.0

#: Celery's usual interval, in seconds.
_USUAL_INTERVAL = 2.0

#: Workers that fell silent and of which nothing was heard since; more are not remembered.
_MAX_SILENT = 1000

_EVENTS = {"worker-online": "online", "worker-heartbeat": "heartbeat", "worker-offline": "offline"}

#: What Celery tells of a worker, as far as it is of use to others.
_FIELDS = ("pid", "freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys")


class WorkerTopics:
    """Publishes what workers tell of themselves, and when one is gone without a word."""

    def __init__(
        self, clock: Clock, wall_clock: Callable[[], float], events: EventPublisher, uris: Uris
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._events = events
        self._uris = uris
        #: Until when each worker is waited for, by its name, and how long that is.
        self._alive: dict[str, tuple[float, float]] = {}
        self._silent: dict[str, None] = {}
        self._timer: Timer | None = None
        self._can_hear: Callable[[], bool] = lambda: False

    def start(self, can_hear: Callable[[], bool]) -> None:
        """Begin, knowing of no worker.

        :param can_hear: whether events of workers come in; while they do not, nobody is silent
        """
        self.stop()
        self._can_hear = can_hear
        self._timer = self._clock.callLater(CHECK_INTERVAL, self._check)

    def stop(self) -> None:
        """Publish nothing more."""
        self._alive.clear()
        self._silent.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self, event: Mapping[str, Any]) -> None:
        """One of Celery's events of a worker."""
        kind, hostname = _EVENTS.get(event["type"]), event.get("hostname")
        if kind is None or not isinstance(hostname, str):
            return
        fields = {name: event[name] for name in _FIELDS if event.get(name) is not None}
        if kind == "offline":
            self._alive.pop(hostname, None)
            self._silent.pop(hostname, None)
            fields["reason"] = "left"
        elif "active" in event:
            # Without it, it is what a worker answers to the control command of the same name. Those
            # that run without heartbeats answer, too, and are not to be waited for.
            self._alive[hostname] = self._patience(event.get("freq"))
            if hostname in self._silent:
                del self._silent[hostname]
                if kind == "heartbeat":
                    self._publish("online", hostname, time_of(event), fields)
        self._publish(kind, hostname, time_of(event), fields)

    def _patience(self, interval: Any) -> tuple[float, float]:
        seconds = interval if isinstance(interval, int | float) else _USUAL_INTERVAL
        silence = max(MIN_SILENCE, MISSED_HEARTBEATS * seconds)
        return self._clock.seconds() + silence, silence

    def _check(self) -> None:
        self._timer = self._clock.callLater(CHECK_INTERVAL, self._check)
        now = self._clock.seconds()
        if not self._can_hear():
            # Once they can be heard again, each has as long as ever.
            self._alive = {name: (now + silence, silence) for name, (_, silence) in self._alive.items()}
            return
        for hostname in [name for name, (until, _) in self._alive.items() if until <= now]:
            del self._alive[hostname]
            if len(self._silent) < _MAX_SILENT:
                self._silent[hostname] = None
            self._publish("offline", hostname, self._wall_clock(), {"reason": "silent"})

    def _publish(self, kind: str, hostname: str, timestamp: float, fields: Mapping[str, Any]) -> None:
        payload = {"hostname": hostname, "timestamp": timestamp, **fields}
        self._events.announce(self._uris.admin(f"worker.{kind}"), payload)
