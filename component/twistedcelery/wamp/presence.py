"""``celery_admin.bridge.online`` and ``offline``: which bridges there are.

A bridge that dies cannot say so. It leaves a testament with the router, which publishes it when the
session ends, however it does. A bridge that leaves in good order takes the testament back first.

Both topics carry, by keyword: ``id``, the bridge's WAMP session; ``host`` and ``pid`` of its process;
``since``, when it joined, in seconds since the epoch; and ``offline`` a ``reason``, ``"stopped"`` or
``"lost"``.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Protocol

from autobahn.wamp.exception import TransportLost
from autobahn.wamp.types import PublishOptions
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from twistedcelery.wamp.uris import Uris

__all__ = ["Presence", "describe_process"]

_log = Logger()


class AnnouncedSession(Protocol):
    """What a presence needs of its WAMP session."""

    def is_attached(self) -> bool:
        """Whether the session can send now."""

    def call(self, procedure: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """As `autobahn.wamp.interfaces.ICaller.call`."""

    def publish(self, topic: str, *args: Any, **kwargs: Any) -> Any:
        """As `autobahn.wamp.interfaces.IPublisher.publish`."""


class Presence:
    """One session of a bridge, as others see it.

    :param description: what both events carry
    """

    def __init__(self, session: AnnouncedSession, uris: Uris, description: Mapping[str, Any]) -> None:
        self._session = session
        self._uris = uris
        self._description = dict(description)

    def announce(self) -> None:
        """Leave the testament, then say that the bridge is there."""
        testament = {**self._description, "reason": "lost"}
        leaving = self._session.call("wamp.session.add_testament", self._topic("offline"), [], testament)
        leaving.addErrback(self._no_testament).addCallback(lambda _: self._publish("online"))

    def retract(self) -> Deferred[None]:
        """Take the testament back, and say that the bridge leaves.

        :return: fires once the router has answered. Never fails
        """
        taken_back = self._session.call("wamp.session.flush_testaments")
        # Where it cannot be taken back there was none, or the session is lost, and the testament holds.
        return taken_back.addErrback(lambda _: None).addCallback(
            lambda _: self._publish("offline", reason="stopped")
        )

    def _topic(self, event: str) -> str:
        return self._uris.admin(f"bridge.{event}")

    def _publish(self, event: str, **more: Any) -> None:
        if not self._session.is_attached():
            return
        try:
            options = PublishOptions(acknowledge=False)
            self._session.publish(self._topic(event), options=options, **self._description, **more)
        except TransportLost:
            # The router notices that as well, and publishes the testament.
            pass

    def _no_testament(self, failure: Failure) -> None:
        # The loss of the session says itself why.
        if self._session.is_attached():
            reason = getattr(failure.value, "error", type(failure.value).__name__)
            _log.warn("nobody will be told if this bridge dies: no testament: {reason}", reason=reason)


def describe_process() -> dict[str, Any]:
    """Where this bridge runs: ``host`` and ``pid``."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
