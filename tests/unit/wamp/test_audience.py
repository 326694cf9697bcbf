"""What the bridge knows of subscriptions, and what it publishes by that."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from tests.unit.wamp.fakes import success
from twistedcelery.wamp.router.audience import Audience, Pattern

#: The bridge's clock at the beginning of a test.
NOW = 1000.0


class Router:
    """A session, and the router that answers it.

    :ivar subscriptions: URI and policy, by id
    """

    def __init__(self) -> None:
        self.subscriptions: dict[int, tuple[str, str]] = {}
        self.refused: set[str] = set()
        self.attached = True
        self.listeners: dict[str, Any] = {}
        self.listing: Deferred[Any] | None = None
        self.asked: list[int] = []

    def is_attached(self) -> bool:
        return self.attached

    def listen(self, topic: str, match: str, subscriber: Any) -> Deferred[Any]:
        self.listeners[topic] = subscriber
        return self._answer(topic, None)

    def call(self, procedure: str, *args: Any) -> Deferred[Any]:
        if procedure.endswith(".list"):
            ids: dict[str, list[int]] = {"exact": [], "prefix": [], "wildcard": []}
            for number, (_, match) in self.subscriptions.items():
                ids[match].append(number)
            self.listing = self.listing or succeed(ids)
            return self._answer(procedure, ids) if self.listing.called else self.listing
        self.asked.append(args[0])
        if args[0] not in self.subscriptions:
            return fail(ApplicationError(ApplicationError.NO_SUCH_SUBSCRIPTION))
        return self._answer(procedure, self.details(args[0]))

    def details(self, number: int, created: float = NOW) -> dict[str, Any]:
        uri, match = self.subscriptions[number]
        when = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
        return {"id": number, "uri": uri, "match": match, "created": when}

    def create(self, number: int, uri: str, match: str = "exact", created: float = NOW) -> None:
        """Somebody subscribes."""
        self.subscriptions[number] = uri, match
        self.listeners["wamp.subscription.on_create"]((5, self.details(number, created)), {}, None)

    def delete(self, number: int) -> None:
        """The last one has left."""
        del self.subscriptions[number]
        self.listeners["wamp.subscription.on_delete"]((5, number), {}, None)

    def _answer(self, what: str, answer: Any) -> Deferred[Any]:
        if what in self.refused:
            return fail(ApplicationError(ApplicationError.NOT_AUTHORIZED))
        return succeed(answer)


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def audience() -> Audience:
    return Audience(lambda topic: topic.startswith("celery"), lambda _: None)


@pytest.mark.parametrize(
    ("uri", "match", "topic", "matches"),
    [
        ("celery.a.sent", "exact", "celery.a.sent", True),
        ("celery.a.sent", "exact", "celery.a.sent.x", False),
        ("celery.", "prefix", "celery.a.sent", True),
        ("celery", "prefix", "celery_task.1", True),
        ("celery.b", "prefix", "celery.a.sent", False),
        ("celery..sent", "wildcard", "celery.a.sent", True),
        (".a.", "wildcard", "celery.a.sent", True),
        ("celery..sent", "wildcard", "celery.a.b.sent", False),
        ("celery..failed", "wildcard", "celery.a.sent", False),
    ],
)
def test_patterns(router, audience, uri, match, topic, matches):
    """They match as WAMP says, whether they were there before or come later."""
    assert Pattern(uri, match, 0).matches(topic) == matches
    router.subscriptions[1] = uri, match
    audience.attach(router)
    assert audience.has(topic) == matches
    router.delete(1)
    assert not audience.has(topic)
    router.create(2, uri, match)
    assert audience.has(topic) == matches


def test_everything_is_published_while_it_is_not_known(router, audience):
    """Before the router has answered, and when the session has ended."""
    assert audience.has("celery.a.sent")
    router.listing = Deferred()
    audience.attach(router)
    assert audience.has("celery.a.sent")
    router.listing.callback({"exact": [], "prefix": [], "wildcard": []})
    assert not audience.has("celery.a.sent")
    audience.detach(router)
    assert audience.has("celery.a.sent")


def test_what_happens_while_the_router_is_asked(router, audience):
    """A subscription that ends before it is looked up is none; a new one is one."""
    router.listing = Deferred()
    router.subscriptions = {1: ("celery.a.sent", "exact"), 2: ("celery.b.sent", "exact")}
    audience.attach(router)
    router.delete(1)
    router.subscriptions[1] = "celery.a.sent", "exact"  # The router's answer may be older than the event.
    router.create(3, "celery.c.sent")
    router.listing.callback({"exact": [1, 2, 4], "prefix": [], "wildcard": []})
    assert [audience.has(f"celery.{name}.sent") for name in "abcd"] == [False, True, True, False]


@pytest.mark.parametrize(
    "refused", ["on_create", "on_delete", "list", "get"], ids=lambda name: f"wamp.subscription.{name}"
)
def test_a_bridge_that_may_not_ask(router, audience, said, refused):
    """Publishes everything, and says so once."""
    router.refused = {f"wamp.subscription.{refused}"}
    router.subscriptions[1] = "celery.a.sent", "exact"
    for _ in range(2):
        audience.attach(router)
        assert audience.has("celery.b.sent")
    (line,) = said
    assert "not_authorized" in line
    assert "wamp.subscription.list" in line


def test_a_lost_session_is_no_refusal(router, audience, said):
    """The next one asks again."""
    router.listing = Deferred()
    audience.attach(router)
    router.attached = False
    router.listing.errback(Failure(ApplicationError("wamp.error.canceled")))
    assert not said


def test_an_earlier_session_says_nothing_any_more(router, audience):
    """Its subscriptions were another router's, perhaps."""
    audience.attach(router)
    later = Router()
    audience.attach(later)
    router.create(1, "celery.a.sent")
    audience.detach(router)
    assert not audience.has("celery.a.sent")


def test_topics_of_others_are_not_kept(router, audience):
    """However many there are."""
    audience.attach(router)
    for number in range(100):
        router.create(number, f"com.example.{number}")
    assert not audience._subscriptions
    router.delete(5)


# What is published


def test_nothing_is_published_that_nobody_gets(setup, router):
    """Each topic counts by itself."""
    one = setup(events=True)
    publish(one, router)
    router.create(1, "celery.app.add.succeeded")
    one.call("app.add", 1, 2)
    one.last.mark_published()
    one.last.finish(success(3))
    assert [topic for topic, *_ in one.session.published] == ["celery.app.add.succeeded"]
    router.delete(1)
    one.call("app.add", 1, 2)
    one.last.finish(success(3))
    assert len(one.session.published) == 1


def test_retained_events_are_always_published(setup, router):
    """Somebody may subscribe later."""
    one = setup(events=True, retain_events=True)
    publish(one, router)
    one.call("app.add", 1, 2)
    one.last.finish(success(3))
    assert {topic.partition(".")[0] for topic, *_ in one.session.published} == {"celery_task"}


@pytest.mark.parametrize(("created", "late"), [(NOW, True), (NOW + 0.5, False)])
def test_a_subscriber_who_calls_at_once(setup, router, created, late):
    """The bridge learns of the subscription after the call. What came after it is published then, once."""
    one = setup(events=True)
    publish(one, router)
    one.call("app.add", 1, 2)
    one.clock.advance(0.1)
    one.last.mark_published()
    router.create(1, "celery.", "prefix", created)
    assert one.session.topics() == (["app.add.sent"] if late else [])
    router.create(2, "celery.app.add.sent", "exact", created)
    assert len(one.session.published) == late


def test_what_is_long_over_is_not_published(setup, router):
    """A second is long."""
    one = setup(events=True, max_in_flight_age=None)
    publish(one, router)
    one.call("app.add", 1, 2)
    one.last.mark_published()
    one.clock.advance(2)
    assert not one.bridge._events._recent
    assert not one.clock.getDelayedCalls()
    router.create(1, "celery.", "prefix")
    assert not one.session.published


def test_no_timer_outlives_the_session(setup, router):
    """What was kept for its subscribers goes with it."""
    one = setup(events=True, max_in_flight_age=None)
    publish(one, router)
    one.call("app.add", 1, 2)
    one.last.mark_published()
    assert one.clock.getDelayedCalls()
    one.bridge.detach(one.session)
    assert not one.clock.getDelayedCalls()
    assert not one.bridge._events._recent


def publish(one: Any, router: Router) -> None:
    """Let a bridge's session be answered by a router."""
    one.session.listen, one.session.call = router.listen, router.call
    one.bridge._events.attach(one.session)
