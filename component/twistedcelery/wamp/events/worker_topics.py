"""Publishes on ``celery_admin.worker.*`` which workers are online, from Celery's event stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from twistedcelery.wamp.events.celery_events import time_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twistedcelery._types import Clock, Timer
    from twistedcelery.wamp.events.topics import EventPublisher
    from twistedcelery.wamp.uris import Uris

__all__ = ["CHECK_INTERVAL", "MIN_SILENCE", "WorkerTopics"]

#: A worker counts as offline after so many missed heartbeats, and so many seconds. Celery's own monitors
#: wait for two heartbeats, usually 4 s, which a busy machine takes at times.
MISSED_HEARTBEATS = 3
MIN_SILENCE = 10.0

#: Seconds between two checks for silent workers.
CHECK_INTERVAL = 1.0

#: Celery's usual interval, in seconds.
_USUAL_INTERVAL = 2.0

#: Silent workers that are remembered, to be reported when they are back.
_MAX_SILENT = 1000

_EVENTS = {"worker-online": "online", "worker-heartbeat": "heartbeat", "worker-offline": "offline"}

#: The fields of Celery's events that are published.
_FIELDS = ("pid", "freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys")


_log = Logger()


class WorkerTopics:
    """Publishes the events of workers, and that a worker is offline when it falls silent.

    Logs the workers that come and go.
    """

    def __init__(
        self, clock: Clock, wall_clock: Callable[[], float], events: EventPublisher, uris: Uris
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._events = events
        self._uris = uris
        #: By name: when a worker counts as offline, and after how many seconds of silence.
        self._alive: dict[str, tuple[float, float]] = {}
        self._silent: dict[str, None] = {}
        self._timer: Timer | None = None
        self._is_connected: Callable[[], bool] = lambda: False

    def start(self, is_connected: Callable[[], bool]) -> None:
        """Begin, without any known worker.

        :param is_connected: whether the event stream is connected. If not, no worker counts as silent
        """
        self.stop()
        self._is_connected = is_connected
        self._timer = self._clock.callLater(CHECK_INTERVAL, self._check)

    def stop(self) -> None:
        """Publish nothing more."""
        self._alive.clear()
        self._silent.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self, event: Mapping[str, Any]) -> None:
        """Publish one of Celery's events of a worker."""
        kind, hostname = _EVENTS.get(event["type"]), event.get("hostname")
        if kind is None or not isinstance(hostname, str):
            return
        fields = {name: event[name] for name in _FIELDS if event.get(name) is not None}
        if kind == "offline":
            if self._alive.pop(hostname, None) is not None:
                self._log(hostname, "is offline: it left")
            self._silent.pop(hostname, None)
            fields["reason"] = "left"
        elif "active" in event:
            # Without it, the event answers the control command of the same name. Workers without
            # heartbeats answer too, and must not count as silent.
            is_new = hostname not in self._alive
            self._alive[hostname] = self._patience(event.get("freq"))
            if is_new:
                self._log(hostname, "is online")
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
        if not self._is_connected():
            # Once the stream is back, each worker has its full time again.
            self._alive = {name: (now + silence, silence) for name, (_, silence) in self._alive.items()}
            return
        for hostname in [name for name, (until, _) in self._alive.items() if until <= now]:
            _, silence = self._alive.pop(hostname)
            self._log(hostname, f"is offline: it was silent for {silence:g} s")
            if len(self._silent) < _MAX_SILENT:
                self._silent[hostname] = None
            self._publish("offline", hostname, self._wall_clock(), {"reason": "silent"})

    def _log(self, hostname: str, event: str) -> None:
        _log.info(
            "the worker {name!r:.255} {event}; {count} online",
            name=hostname,
            event=event,
            count=len(self._alive),
        )

    def _publish(self, kind: str, hostname: str, timestamp: float, fields: Mapping[str, Any]) -> None:
        payload = {"hostname": hostname, "timestamp": timestamp, **fields}
        self._events.announce(self._uris.admin(f"worker.{kind}"), payload)
