"""The session, driven as Crossbar and Autobahn do."""

from __future__ import annotations

import pytest
from autobahn.wamp import auth
from autobahn.wamp.message import Challenge as ChallengeMessage
from autobahn.wamp.message import Error, Goodbye, Hello, Interrupt, Invocation, Register, Welcome
from autobahn.wamp.request import Endpoint, InvocationRequest, Registration
from autobahn.wamp.role import RoleBrokerFeatures, RoleDealerFeatures
from autobahn.wamp.serializer import MsgPackSerializer
from autobahn.wamp.types import Challenge, CloseDetails, ComponentConfig
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from twistedcelery import ConfigurationError
from twistedcelery.wamp import CeleryBridge
from twistedcelery.wamp.router.authentication import Credentials
from twistedcelery.wamp.session import REFUSED_DELAY


class Transport:
    """Remembers what the session sends."""

    #: Autobahn describes sessions by these.
    _serializer, transport_details = MsgPackSerializer(), None

    def __init__(self):
        self.maxMessagePayloadSize = 0
        self.sent = []
        self.closed = False
        self.is_closed = Deferred()

    def send(self, message):
        self.sent.append(message)

    def isOpen(self):  # noqa: N802  # autobahn's name
        return not self.closed

    def close(self):
        self.closed = True


class Runner:
    """A runner like Autobahn's, which reconnects until it is stopped."""

    stopped = False

    def stop(self):
        self.stopped = True


@pytest.fixture(autouse=True)
def no_ticket(monkeypatch):
    monkeypatch.delenv("TWISTEDCELERY_TICKET", raising=False)


def connect(extra, runner=None):
    clock, transport = Clock(), Transport()
    session = CeleryBridge(ComponentConfig("realm1", extra, runner=runner), clock)
    session.onOpen(transport)
    return session, transport, clock


APP = {"app": "tests.support.taskapp"}


def test_joining_without_a_secret():
    """A bridge without a secret joins anonymously."""
    _, transport, _ = connect(APP)
    (hello,) = transport.sent
    assert isinstance(hello, Hello)
    assert (hello.realm, hello.authmethods, hello.authid) == ("realm1", None, None)


def test_joining_with_a_secret(monkeypatch, said):
    """The secret goes only to the router that asks for it."""
    monkeypatch.setenv("TWISTEDCELERY_TICKET", "s3cret")
    session, transport, _ = connect(APP)
    assert (transport.sent[0].authmethods, transport.sent[0].authid) == (["ticket", "wampcra"], "bridge")
    session.onMessage(ChallengeMessage("ticket"))
    assert transport.sent[1].signature == "s3cret"
    assert "s3cret" not in "".join(said)


def test_wampcra():
    """The signature is the one that Autobahn computes, also with a salted secret."""
    credentials = Credentials("bridge", "s3cret")
    assert "s3cret" not in repr(credentials)
    plain = {"challenge": "{}"}
    salted = {**plain, "salt": "salt", "iterations": 10, "keylen": 16}
    for extra in (plain, salted):
        challenge = Challenge("wampcra", extra)
        theirs = auth.AuthWampCra(authid="bridge", secret="s3cret").on_challenge(None, challenge)
        assert credentials.answer(challenge) == theirs
    with pytest.raises(ValueError, match="'scram', which was not offered"):
        credentials.answer(Challenge("scram"))


def test_the_authid_can_be_set():
    """Several bridges of one router can have different names."""
    environ = {"TWISTEDCELERY_TICKET": "s3cret", "TWISTEDCELERY_AUTHID": "bridge-2"}
    assert Credentials.from_environment(environ).authid == "bridge-2"
    assert Credentials.from_environment({"TWISTEDCELERY_TICKET": ""}) is None


def test_a_wrong_configuration_ends_the_attempts(said):
    """The reason is logged once, the connection is closed, and nothing reconnects."""
    runner = Runner()
    _, transport, _ = connect({**APP, "prefx": "x"}, runner)
    assert transport.sent == []
    assert transport.closed
    assert runner.stopped
    assert [line for line in said if "did you mean 'prefix'?" in line] == [said[-1]]


def test_crossbars_own_check(said):
    """Crossbar checks the configuration before it starts the component."""
    CeleryBridge.check_config(None, {**APP, "cbdir": "/node"})
    with pytest.raises(ConfigurationError, match="did you mean 'prefix'"):
        CeleryBridge.check_config(None, {**APP, "prefx": "x"})
    assert "did you mean 'prefix'?" in said[-1]


def test_a_refusal_is_not_followed_by_a_storm():
    """The connection stays open for a while, since its end leads to the next attempt."""
    session, transport, clock = connect(APP)
    session.onLeave(CloseDetails("wamp.error.not_authorized", "no"))
    clock.advance(REFUSED_DELAY - 0.1)
    assert not transport.closed
    clock.advance(0.2)
    assert transport.closed


def welcome(role):
    """The router accepts the session."""
    roles = {"dealer": RoleDealerFeatures(), "broker": RoleBrokerFeatures()}
    return Welcome(1, roles, realm="realm1", authid="some", authrole=role, authmethod="anonymous")


@pytest.mark.parametrize(
    ("ticket", "advice"), [("", "Is TWISTEDCELERY_TICKET set?"), ("x", "Check the role's permissions.")]
)
def test_a_role_that_may_not_register(ticket, advice, monkeypatch, said):
    """One line says so, and the session leaves after a while, as if the router had refused it."""
    monkeypatch.setenv("TWISTEDCELERY_TICKET", ticket)
    session, transport, clock = connect(APP)
    session.onMessage(welcome("browser"))
    while pending := [message for message in transport.sent if isinstance(message, Register)]:
        transport.sent.clear()
        for message in pending:
            session.onMessage(Error(Register.MESSAGE_TYPE, message.request, "wamp.error.not_authorized"))
    (line,) = said
    assert line == (
        "the router accepted the bridge in realm1 as role 'browser', which may not register its procedures. "
        + advice
    )
    assert not session.is_serving
    clock.advance(REFUSED_DELAY)
    assert [type(message) for message in transport.sent] == [Goodbye]


def test_the_limit_of_the_transport():
    """A value is limited by the transport's own limit, if there is one."""
    session, transport, _ = connect(APP)
    assert session.max_size == 16 * 2**20 - 2**16
    transport.maxMessagePayloadSize = 2**20
    assert session.max_size == 2**20 - 2**16


def test_how_a_call_is_interrupted():
    """The router's mode is known while the call is cancelled."""
    session, _, _ = connect(APP)
    session._session_id = 1
    modes = []
    session._invocations[9] = InvocationRequest(
        9, Deferred(lambda _: modes.append(session._open.interrupt_mode))
    )
    session._invocations[9].on_reply.addErrback(lambda failure: failure.trap(CancelledError))
    session.onMessage(Interrupt(9, mode="kill"))
    assert modes == ["kill"]


def test_keywords_of_any_name():
    """A caller's keyword never clashes with a parameter of Autobahn's own functions."""
    session, _, _ = connect(APP)
    session._session_id = 1
    seen = {}

    def endpoint(**kwargs):
        seen.update(kwargs)

    session._registrations[5] = Registration(session, 5, "procedure", Endpoint(endpoint, None, "details"))
    keywords = {"self": 1, "fun": 2, "f": 3, "details": 4, "keywords": 5}
    session.onMessage(Invocation(9, 5, args=[], kwargs=dict(keywords)))
    assert seen["keywords"] == keywords


@pytest.mark.parametrize(
    ("procedure", "refused"), [("taskapp.add", True), ("api.submit", True), ("api.status", False)]
)
def test_a_refusal_comes_before_everything_else(procedure, refused):
    """Past a limit, calls that send a task are answered at once, without their endpoint."""
    session, transport, _ = connect({**APP, "prefix": f"cheap{procedure[:3]}", "max_in_flight": 1})
    session._session_id = 1
    uris = session._bridge.uris
    uri = uris.api(procedure[4:]) if procedure.startswith("api.") else uris.task(procedure)
    called = []
    endpoint = Endpoint(lambda *_, **__: called.append(1), None, "details")
    session._registrations[5] = session._provided[5] = Registration(session, 5, uri, endpoint)
    session._bridge._in_flight.refusal = lambda caller: session._bridge.errors.make(
        "overloaded", caller.authid
    )
    transport.sent.clear()
    session.onMessage(
        Invocation(9, 5, args=[1], kwargs={}, caller=7, caller_authid="joe", caller_authrole="x")
    )
    assert bool(called) is not refused
    (answer,) = transport.sent
    if refused:
        assert (answer.request, answer.error, answer.args) == (9, uris.error("overloaded"), ["joe"])
