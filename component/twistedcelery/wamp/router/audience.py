"""Tracks which topics have subscribers, so that the bridge publishes no event without one.

The router's meta API reports it: ``wamp.subscription.on_create`` for the first subscriber of a topic or a
pattern, ``on_delete`` after the last one has left, ``list`` and ``get`` for earlier subscriptions. While the
bridge does not know them, or is not allowed to ask, every topic counts as subscribed.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError, TransportLost
from twisted.internet.defer import Deferred, DeferredSemaphore, inlineCallbacks
from twisted.logger import Logger

from twistedcelery._deferreds import all_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from twisted.python.failure import Failure

    from twistedcelery.wamp.interfaces import WampSession

__all__ = ["Audience", "Pattern"]

#: Questions about subscriptions that are under way at once.
_AT_ONCE = 50

_META = "wamp.subscription"

_log = Logger()


class Pattern:
    """The topics of one subscription.

    :param match: WAMP's matching policy
    :param created: when the router made it: seconds since the epoch
    """

    __slots__ = ("_components", "created", "match", "uri")

    def __init__(self, uri: str, match: str, created: float) -> None:
        self.uri = uri
        self.match = match
        self.created = created
        self._components = uri.split(".") if match == "wildcard" else []

    def matches(self, topic: str) -> bool:
        """Whether a topic is one of them."""
        if self.match == "prefix":
            return topic.startswith(self.uri)
        if self.match == "exact":
            return topic == self.uri
        components = topic.split(".")
        return len(components) == len(self._components) and all(
            own in ("", given) for own, given in zip(self._components, components, strict=True)
        )


class Audience:
    """The subscriptions on the router that the bridge's current session is connected to.

    :param may_matter: whether a topic that is subscribed exactly may be one of the bridge's
    :param created: called with each new subscription of theirs
    """

    def __init__(self, may_matter: Callable[[str], bool], created: Callable[[Pattern], None]) -> None:
        self._may_matter = may_matter
        self._created = created
        self._session: WampSession | None = None
        self._is_known = False
        self._has_logged = False
        #: By the router's ids; those that have ended before anything was known of them are in the set.
        self._subscriptions: dict[int, Pattern] = {}
        self._ended: set[int] = set()
        self._exact: dict[str, int] = {}
        self._patterns: dict[int, Pattern] = {}

    def attach(self, session: WampSession) -> None:
        """Ask the router."""
        self._forget()
        self._session = session
        self._ask(session).addErrback(self._not_allowed, session)

    def detach(self, session: WampSession) -> None:
        """Forget all: a session is about to leave, or has ended. Does nothing if another has replaced it."""
        if self._session is session:
            self._session = None
            self._forget()

    def has(self, topic: str) -> bool:
        """Whether a topic has subscribers, as far as the bridge knows."""
        if not self._is_known or topic in self._exact:
            return True
        return any(pattern.matches(topic) for pattern in self._patterns.values())

    @inlineCallbacks
    def _ask(self, session: WampSession) -> Generator[Deferred[Any], Any, None]:
        # First of what happens from now on, so that nothing is missed in between.
        yield all_of(
            [
                session.listen(f"{_META}.on_create", "exact", self._listener(session, self._on_create)),
                session.listen(f"{_META}.on_delete", "exact", self._listener(session, self._on_delete)),
            ]
        )
        listed = yield session.call(f"{_META}.list")
        slots = DeferredSemaphore(_AT_ONCE)
        ids = [each for match in ("exact", "prefix", "wildcard") for each in listed[match]]
        yield all_of([slots.run(self._look_up, session, each) for each in ids])
        if self._session is session:
            self._ended.clear()
            self._is_known = True

    def _look_up(self, session: WampSession, subscription_id: int) -> Deferred[None]:
        def found(details: Mapping[str, Any]) -> None:
            if self._session is session and subscription_id not in self._ended:
                self._add(details)

        def not_found(failure: Failure) -> Failure | None:
            error = failure.value
            gone = ApplicationError.NO_SUCH_SUBSCRIPTION
            return None if isinstance(error, ApplicationError) and error.error == gone else failure

        return session.call(f"{_META}.get", subscription_id).addCallbacks(found, not_found)

    def _listener(
        self, session: WampSession, happened: Callable[[Any], None]
    ) -> Callable[[Sequence[Any], Mapping[str, Any], Any], None]:
        def listener(args: Sequence[Any], _kwargs: Mapping[str, Any], _details: Any) -> None:
            if self._session is session and len(args) > 1:
                happened(args[1])

        return listener

    def _on_create(self, details: Mapping[str, Any]) -> None:
        pattern = self._add(details)
        if pattern is not None:
            self._created(pattern)

    def _on_delete(self, subscription_id: int) -> None:
        pattern = self._subscriptions.pop(subscription_id, None)
        if not self._is_known:
            self._ended.add(subscription_id)
        if pattern is None:
            return
        self._patterns.pop(subscription_id, None)
        if self._exact.get(pattern.uri) == subscription_id and pattern.match == "exact":
            del self._exact[pattern.uri]

    def _add(self, details: Mapping[str, Any]) -> Pattern | None:
        created = datetime.fromisoformat(details["created"]).timestamp()
        pattern = Pattern(details["uri"], details["match"], created)
        if pattern.match == "exact":
            if not self._may_matter(pattern.uri):
                return None
            self._exact[pattern.uri] = details["id"]
        else:
            self._patterns[details["id"]] = pattern
        self._subscriptions[details["id"]] = pattern
        return pattern

    def _not_allowed(self, failure: Failure, session: WampSession) -> None:
        if failure.check(TransportLost) or self._session is not session or not session.is_attached():
            # The next session asks again.
            return
        self._forget()
        if not self._has_logged:
            self._has_logged = True
            _log.info(
                "the bridge is not allowed to see subscriptions ({reason}), so it publishes events without "
                "subscribers, too. Allow its role to subscribe to '{meta}.on_create' and '{meta}.on_delete', "
                "and to call '{meta}.list' and '{meta}.get'.",
                reason=getattr(failure.value, "error", failure.value),
                meta=_META,
            )

    def _forget(self) -> None:
        self._is_known = False
        self._subscriptions.clear()
        self._ended.clear()
        self._exact.clear()
        self._patterns.clear()
