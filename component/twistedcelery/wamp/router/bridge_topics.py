"""Publishes on ``celery_admin.bridge.online`` and ``offline`` which bridges are online.

A bridge that dies cannot publish that. It leaves a testament with the router, which publishes it when
the session ends. A bridge that leaves in good order withdraws the testament first.

Both topics carry, by keyword: ``id``, the bridge's WAMP session; ``host`` and ``pid`` of its process;
``since``, when it joined, in seconds since the epoch; and ``offline`` a ``reason``, ``"stopped"`` or
``"lost"``.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import TransportLost
from autobahn.wamp.types import PublishOptions
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from twistedcelery.wamp.interfaces import WampSession
    from twistedcelery.wamp.uris import Uris

__all__ = ["BridgeTopics", "describe_process"]

_log = Logger()


class BridgeTopics:
    """Publishes when one session of a bridge begins and ends.

    :param description: what both events carry
    """

    def __init__(self, session: WampSession, uris: Uris, description: Mapping[str, Any]) -> None:
        self._session = session
        self._uris = uris
        self._description = dict(description)

    def publish_online(self) -> None:
        """Leave the testament, then publish that the bridge is online."""
        testament = {**self._description, "reason": "lost"}
        leaving = self._session.call("wamp.session.add_testament", self._topic("offline"), [], testament)
        leaving.addErrback(self._no_testament).addCallback(lambda _: self._publish("online"))

    def publish_offline(self) -> Deferred[None]:
        """Withdraw the testament, and publish that the bridge leaves.

        :return: fires once the router has answered. It never fails
        """
        withdrawn = self._session.call("wamp.session.flush_testaments")
        # If that fails there was no testament; or the session is lost, and the router publishes it.
        return withdrawn.addErrback(lambda _: None).addCallback(
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
            # The router publishes the testament.
            pass

    def _no_testament(self, failure: Failure) -> None:
        # A lost session is logged elsewhere.
        if self._session.is_attached():
            reason = getattr(failure.value, "error", type(failure.value).__name__)
            _log.warn(
                "the router refused the bridge's testament: {reason}. If this bridge dies, no offline event "
                "is published.",
                reason=reason,
            )


def describe_process() -> dict[str, Any]:
    """The ``host`` and the ``pid`` of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
