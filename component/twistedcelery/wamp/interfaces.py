"""What the parts of a bridge need of its WAMP session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from autobahn.wamp.types import EventDetails

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from twistedcelery.wamp.invocation import Handler

__all__ = ["Subscriber", "WampSession"]

#: Takes each event of a subscription: positional arguments, keywords, details. It must not raise.
Subscriber = Callable[[Sequence[Any], Mapping[str, Any], EventDetails], None]


class WampSession(Protocol):
    """A session that has joined a realm: `twistedcelery.wamp.CeleryBridge`, or a test's own."""

    @property
    def max_size(self) -> int:
        """Bytes that one value may take on the way to the router."""

    def is_attached(self) -> bool:
        """Whether the session can send now."""

    def call(self, procedure: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """As `autobahn.wamp.interfaces.ICaller.call`."""

    def publish(self, topic: str, *args: Any, **kwargs: Any) -> Any:
        """As `autobahn.wamp.interfaces.IPublisher.publish`."""

    def provide(self, uri: str, handler: Handler, invoke: str) -> Deferred[Any]:
        """Register a procedure.

        :param invoke: WAMP's registration policy
        :return: fires with the registration, or fails with the router's `ApplicationError`
        """

    def withdraw(self, registration: Any) -> Deferred[Any]:
        """Unregister a procedure. Calls in progress go on.

        :return: fires once the router has confirmed
        """

    def listen(self, topic: str, match: str, subscriber: Subscriber) -> Deferred[Any]:
        """Subscribe.

        :param match: WAMP's matching policy
        :return: fires once the router has confirmed, or fails with its `ApplicationError`
        """

    def leave(self) -> Deferred[None]:
        """Let the calls in progress end, then leave.

        :return: fires once the session has ended. It never fails
        """
