"""One session's registrations follow the procedures of its bridge."""

from __future__ import annotations

from typing import Any

from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from twistedcelery.wamp.router.registrations import MAX_REQUESTS, Procedures, Registrations


def handler(_: Any) -> None:
    """Answers nothing."""


class Router:
    """A session whose requests the test answers."""

    def __init__(self, *uris: str) -> None:
        self.attached = True
        self.registering: dict[str, Deferred[Any]] = {}
        self.unregistering: dict[str, Deferred[Any]] = {}
        self.procedures = Procedures(dict.fromkeys(uris, handler))
        self.registrations = Registrations(self, self.procedures, "single")
        self.ready: list[None] = []
        self.registrations.start().addCallback(self.ready.append)

    def is_attached(self) -> bool:
        return self.attached

    def provide(self, uri: str, handler: Any, invoke: str) -> Deferred[Any]:
        assert invoke == "single"
        self.registering[uri] = Deferred()
        return self.registering[uri]

    def withdraw(self, registration: str) -> Deferred[Any]:
        self.unregistering[registration] = Deferred()
        return self.unregistering[registration]

    def register(self, *uris: str) -> None:
        for uri in uris:
            self.registering.pop(uri).callback(uri)

    def unregister(self, uri: str) -> None:
        self.unregistering.pop(uri).callback(None)


def test_everything_is_registered():
    """It is ready once the router has answered every request."""
    router = Router("a", "b")
    router.register("a")
    assert not router.ready
    router.register("b")
    assert len(router.ready) == 1
    assert len(router.registrations) == 2


def test_ten_thousand_are_registered_step_by_step():
    """At most `MAX_REQUESTS` wait for an answer at once."""
    router = Router(*map(str, range(10_000)))
    answered = 0
    while router.registering:
        assert len(router.registering) <= MAX_REQUESTS
        router.register(next(iter(router.registering)))
        answered += 1
    assert answered == len(router.registrations) == 10_000
    assert len(router.ready) == 1


def test_answers_that_are_there_at_once():
    """Ten thousand of them do not recurse."""
    procedures = Procedures(dict.fromkeys(map(str, range(10_000)), handler))
    router = Router()
    router.provide = lambda uri, *_: succeed(uri)  # type: ignore[method-assign]  # a test's own
    registrations = Registrations(router, procedures, "single")
    registrations.start()
    assert len(registrations) == 10_000


def test_changes_while_the_router_thinks():
    """A change before an answer is handled after it, so that the last change counts."""
    router = Router("a")
    router.procedures.discard("a")
    assert router.unregistering == {}
    router.register("a")
    assert list(router.unregistering) == ["a"]
    router.procedures.add("a", handler)
    assert router.registering == {}
    router.unregister("a")
    router.register("a")
    assert len(router.registrations) == 1
    # Back and forth in between comes to nothing.
    router.procedures.discard("a")
    router.procedures.add("a", handler)
    router.procedures.discard("a")
    router.unregister("a")
    assert router.registering == router.unregistering == {}
    assert len(router.registrations) == 0


def test_one_that_the_router_refuses(said):
    """The refusal is logged once, the others are registered, and it is not tried again."""
    router = Router("a", "b")
    router.registering.pop("a").errback(Failure(ApplicationError("wamp.error.not_authorized")))
    router.register("b")
    assert said == ["a could not be registered: wamp.error.not_authorized"]
    assert len(router.ready) == len(router.registrations) == 1
    router.procedures.discard("a")
    router.procedures.add("a", handler)
    assert router.registering == router.unregistering == {}


def test_many_that_the_router_refuses(said):
    """One line for each reason names the first ones."""
    router = Router(*"abcdefg")
    for uri in "abcdef":
        error = "already_exists" if uri == "f" else "not_authorized"
        router.registering.pop(uri).errback(Failure(ApplicationError(f"wamp.error.{error}")))
    assert said == []
    router.register("g")
    assert said == [
        "a, b, c and 2 more could not be registered: wamp.error.not_authorized",
        "f could not be registered: wamp.error.already_exists",
    ]
    assert not router.registrations.are_forbidden
    assert ("g" in router.registrations, "a" in router.registrations) == (True, False)


def test_a_role_that_may_not_register(said):
    """Where all are refused, the session logs why."""
    router = Router("a", "b")
    for uri in "ab":
        router.registering.pop(uri).errback(Failure(ApplicationError("wamp.error.not_authorized")))
    assert router.registrations.are_forbidden
    assert len(router.ready) == 1
    assert said == []


def test_one_that_the_router_has_taken_itself(said):
    """A registration that the router removed already is made again, although unregistering failed."""
    router = Router("a")
    router.register("a")
    router.withdraw = lambda _: fail(ApplicationError("wamp.error.no_such_registration"))  # type: ignore[method-assign]  # a test's own
    router.procedures.discard("a")
    assert said == ["a could not be unregistered: wamp.error.no_such_registration"]
    router.procedures.add("a", handler)
    assert list(router.registering) == ["a"]


def test_a_lost_session(said):
    """Nothing more is sent, nothing is logged, and every waiter is released."""
    router = Router(*map(str, range(MAX_REQUESTS + 1)))
    router.attached = False
    for request in list(router.registering.values()):
        request.errback(Failure(ApplicationError("wamp.close.transport_lost")))
    assert len(router.registering) == MAX_REQUESTS
    assert len(router.ready) == 1
    assert said == []


def test_stopping():
    """A session that leaves registers nothing more, and ignores changes."""
    router = Router("a")
    router.registrations.stop()
    router.procedures.add("b", handler)
    router.register("a")
    router.procedures.discard("a")
    assert router.registering == router.unregistering == {}
    router.registrations.stop()
