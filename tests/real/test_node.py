"""The shipped node: who may do what, and that it does not start with a secret missing."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import pytest_twisted
from autobahn.twisted.wamp import ApplicationSession
from autobahn.twisted.websocket import WampWebSocketClientFactory
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.message import Invocation
from autobahn.wamp.types import Challenge, CloseDetails, ComponentConfig, PublishOptions, SubscribeOptions
from celery import Celery
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from tests.support.debian import require
from tests.support.node import CrossbarNode
from tests.support.ports import free_port
from tests.support.process import ROOT, SOURCES, Process, python_program
from tests.support.rabbitmq import RabbitMQ
from twistedcelery import ConfigurationError, TwistedCelery
from twistedcelery.demo.files import node_config, secret_variables
from twistedcelery.wamp.bridge import Bridge
from twistedcelery.wamp.config import Configuration
from twistedcelery.wamp.operators.worker_commands import worker_commands
from twistedcelery.wamp.tasks.exposed import load_application

#: Seconds for a client of the tests' node to send a request.
CLIENT_TIMEOUT = 2

#: Who signs requests to ``/call``.
KEY = "twistedcelery"

SECRETS = {
    "TWISTEDCELERY_TICKET": "the bridge's secret",
    "TWISTEDCELERY_OPERATOR_TICKET": "the operator's secret",
    "TWISTEDCELERY_CALL_SECRET": "the HTTP caller's secret",
}
TICKETS = {
    "browser": None,
    "bridge": SECRETS["TWISTEDCELERY_TICKET"],
    "operator": SECRETS["TWISTEDCELERY_OPERATOR_TICKET"],
}

TASK, API, ADMIN = "celery.my_app.tasks.add", "celery_api.tasks", "celery_admin.shutdown"
PROGRESS, RUN = "celery.my_app.tasks.add.progress", "celery_task.0a1b"
HEARTBEAT = "celery_admin.worker.heartbeat"

ALLOWED = [
    ("browser", "call", TASK),
    ("browser", "call", API),
    ("browser", "subscribe", PROGRESS),
    ("browser", "subscribe", RUN),
    ("browser", "subscribe to all of", "celery."),
    ("browser", "subscribe to all of", "celery_task."),
    ("operator", "call", TASK),
    ("operator", "call", API),
    ("operator", "call", ADMIN),
    ("operator", "subscribe", PROGRESS),
    ("operator", "subscribe", RUN),
    ("operator", "subscribe", HEARTBEAT),
    ("bridge", "register", "celery.another"),
    ("bridge", "register", "celery_api.another"),
    ("bridge", "register", "celery_admin.another"),
    ("bridge", "publish to", PROGRESS),
    ("bridge", "publish to", RUN),
    ("bridge", "publish to", HEARTBEAT),
    ("bridge", "call", "wamp.session.get"),
    ("bridge", "subscribe", "wamp.subscription.on_create"),
]
REFUSED = [
    ("browser", "call", ADMIN),
    ("browser", "call", "wamp.session.list"),
    ("browser", "call", "wamp.session.get"),
    ("browser", "register", "celery.another"),
    ("browser", "register", "celery_api.another"),
    ("browser", "register", "celery_admin.another"),
    ("browser", "register", "com.example"),
    ("browser", "publish to", PROGRESS),
    ("browser", "publish to", RUN),
    ("browser", "publish to", HEARTBEAT),
    ("browser", "publish to", "com.example"),
    ("browser", "subscribe", HEARTBEAT),
    ("browser", "subscribe", "wamp.session.on_join"),
    ("browser", "subscribe", "com.example"),
    ("browser", "subscribe to all of", "celery"),
    ("browser", "subscribe to all of", "celery_admin."),
    ("operator", "call", "wamp.session.list"),
    ("operator", "register", "celery.another"),
    ("operator", "register", "celery_admin.another"),
    ("operator", "publish to", PROGRESS),
    ("operator", "publish to", HEARTBEAT),
    ("bridge", "call", TASK),
    ("bridge", "call", ADMIN),
    ("bridge", "call", "wamp.session.kill"),
    ("bridge", "register", "com.example"),
    ("bridge", "publish to", "com.example"),
    ("bridge", "subscribe", "com.example"),
]


#: What each role may do in each URI space, and nowhere else.
MATRIX = {
    "browser": {"celery": {"call", "subscribe"}, "celery_api": {"call"}, "celery_task": {"subscribe"}},
    "operator": {
        "celery": {"call", "subscribe"},
        "celery_api": {"call"},
        "celery_task": {"subscribe"},
        "celery_admin": {"call", "subscribe"},
        "celery_admin.sent_by": {"call", "subscribe"},
    },
    "bridge": {
        "celery": {"register", "publish to"},
        "celery_api": {"register"},
        "celery_task": {"publish to"},
        "celery_admin": {"register", "publish to"},
        "celery_admin.sent_by": {"register", "call"},
        "wamp.session.get": {"call"},
        "wamp.session.add_testament": {"call"},
        "wamp.session.flush_testaments": {"call"},
        "wamp.subscription.on_create": {"subscribe"},
        "wamp.subscription.on_delete": {"subscribe"},
        "wamp.subscription.list": {"call"},
        "wamp.subscription.get": {"call"},
    },
}
EVENTS = ("sent", "received", "started", "progress", "retried", "succeeded", "failed", "revoked", "rejected")
#: Every procedure and topic of the bridge, and some of others.
URIS = {
    "celery": [
        *(f"celery.my_app.tasks.{task}" for task in ("add", "countdown", "fail", "mandelbrot")),
        *(f"celery.my_app.tasks.add.{event}" for event in EVENTS),
        "celery.error.task_failed",
    ],
    "celery_api": [
        f"celery_api.{name}" for name in ("tasks", "submit", "result", "state", "revoke", "status")
    ],
    "celery_task": ["celery_task.0a1b"],
    "celery_admin": [
        *(f"celery_admin.{name}" for name in ("leader", "commands", *worker_commands(Celery()))),
        *(f"celery_admin.worker.{event}" for event in ("online", "heartbeat", "offline")),
        *(f"celery_admin.bridge.{event}" for event in ("online", "offline")),
    ],
    "celery_admin.sent_by": ["celery_admin.sent_by.0a1b2c"],
    **{
        f"wamp.session.{name}": [f"wamp.session.{name}"]
        for name in ("get", "add_testament", "flush_testaments")
    },
    **{
        f"wamp.subscription.{name}": [f"wamp.subscription.{name}"]
        for name in ("on_create", "on_delete", "list", "get")
    },
    "others": [
        *(
            "celery",
            "Celery.my_app.tasks.add",
            "c\u0435lery.my_app.tasks.add",
            "celery_apis.tasks",
            "com.example",
        ),
        *("wamp.session.list", "wamp.session.kill", "wamp.registration.list", "wamp.subscription.match"),
        "crossbar.get_status",
    ],
}
#: What a router's own procedures take.
ARGUMENTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "wamp.session.get": lambda session: (session._session_id,),
    "wamp.subscription.get": lambda _: (0,),
    "wamp.session.add_testament": lambda _: ("celery_admin.bridge.offline", [], {}),
}
#: Errors that say that an action is allowed.
ANSWERS = {ApplicationError.NO_SUCH_PROCEDURE, ApplicationError.NO_SUCH_SUBSCRIPTION}
#: How a router refuses: an action, or its own URIs to anybody.
REFUSALS = {ApplicationError.NOT_AUTHORIZED, ApplicationError.INVALID_URI}


class Client(ApplicationSession):
    """A session as one of the node's roles."""

    def __init__(self, authid: str | None, ticket: str | None) -> None:
        super().__init__(ComponentConfig("realm1"))
        self.joined: Deferred[Client] = Deferred()
        self.gone: Deferred[None] = Deferred()
        self._authid, self._ticket = authid, ticket

    def onConnect(self) -> None:
        self.join("realm1", *([] if self._ticket is None else [["ticket"], self._authid]))

    def onChallenge(self, challenge: Challenge) -> str | None:
        return self._ticket

    def onJoin(self, details: Any) -> None:
        self.joined.callback(self)

    def onLeave(self, details: CloseDetails) -> None:
        if not self.joined.called:
            self.joined.errback(ApplicationError(details.reason, details.message))
        self.disconnect()

    def onDisconnect(self) -> None:
        self.gone.callback(None)


@asynccontextmanager
async def client(node: CrossbarNode, authid: str | None, ticket: str | None) -> AsyncIterator[Client]:
    """A joined session, which leaves at the end; anonymous without a ticket."""
    from twisted.internet import reactor

    session = Client(authid, ticket)
    factory = WampWebSocketClientFactory(lambda: session, url=node.url)
    await TCP4ClientEndpoint(reactor, "127.0.0.1", node.port).connect(factory)
    try:
        yield await session.joined
    finally:
        if session.is_attached():
            session.leave()
        await session.gone


async def attempt(session: Client, action: str, uri: str) -> None:
    """Do it, and fail with what the router says."""
    if action == "call":
        await session.call(uri, *ARGUMENTS.get(uri, lambda _: ())(session))
    elif action == "register":
        registration = await session.register(lambda: None, uri)
        await registration.unregister()
    elif action == "publish to":
        await session.publish(uri, options=PublishOptions(acknowledge=True))
    else:
        match = "prefix" if action == "subscribe to all of" else "exact"
        await session.subscribe(lambda **_: None, uri, SubscribeOptions(match=match))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrossbarNode]:
    """The shipped node on a port of its own, without the container of the bridge."""
    port = free_port()
    config = node_config(ROOT, port)
    config["workers"] = [worker for worker in config["workers"] if worker["type"] == "router"]
    # As shipped it is longer than a test should take.
    config["workers"][0]["transports"][0]["options"]["client_timeout"] = CLIENT_TIMEOUT
    node = CrossbarNode(tmp_path_factory.mktemp("node"), config, port=port, env=SECRETS)
    try:
        node.start()
        yield node
    finally:
        node.stop()


@asynccontextmanager
async def registrar(node: CrossbarNode) -> AsyncIterator[Client]:
    """The bridge's place taken by a session that registers one procedure in each space."""
    async with client(node, "bridge", TICKETS["bridge"]) as session:
        await session.register(lambda x=0, y=0: x + y, TASK)
        await session.register(lambda: b"\x89PNG", API)
        await session.register(lambda: None, ADMIN)
        yield session


@pytest.mark.parametrize(("role", "action", "uri"), ALLOWED)
@pytest_twisted.ensureDeferred
async def test_role_may(node: CrossbarNode, role: str, action: str, uri: str) -> None:
    """Each role can do what it is there for."""
    async with registrar(node), client(node, role, TICKETS[role]) as session:
        await attempt(session, action, uri)


@pytest.mark.parametrize(("role", "action", "uri"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_role_may_not(node: CrossbarNode, role: str, action: str, uri: str) -> None:
    """The router refuses everything else."""
    async with registrar(node), client(node, role, TICKETS[role]) as session:
        with pytest.raises(ApplicationError) as refusal:
            await attempt(session, action, uri)
        assert refusal.value.error == ApplicationError.NOT_AUTHORIZED


@pytest.mark.parametrize("role", MATRIX)
@pytest_twisted.ensureDeferred
async def test_every_role_with_every_uri(node: CrossbarNode, role: str) -> None:
    """Each procedure and topic is open to a role as its URI space is, for each action."""
    expected, seen = {}, {}
    async with client(node, role, TICKETS[role]) as session:
        for space, uris in URIS.items():
            for uri in uris:
                expected[uri] = MATRIX[role].get(space, set())
                seen[uri] = set()
                for action in ("call", "register", "subscribe", "publish to"):
                    try:
                        await attempt(session, action, uri)
                    except ApplicationError as error:
                        if error.error in REFUSALS:
                            continue
                        if error.error not in ANSWERS:
                            raise
                    seen[uri].add(action)
    assert seen == expected


def test_every_procedure_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bridge of the shipped node registers nothing that the matrix does not have, or has elsewhere."""
    monkeypatch.syspath_prepend(ROOT / "demo")
    app = load_application("my_app")
    # Other tests of the same process share tasks with every application.
    config = Configuration.parse({"app": "my_app", "include": ["my_app.*"]})
    bridge = Bridge(config, app, Clock(), TwistedCelery(app, Clock()), realm="realm1")
    listed = {uri: space for space, uris in URIS.items() for uri in uris}
    # This one is named for the bridge.
    (asked,) = (uri for uri in bridge.procedures if uri.startswith("celery_admin.sent_by."))
    found = {uri: listed.get(uri) for uri in bridge.procedures if uri != asked}
    assert found == {uri: uri.partition(".")[0] for uri in found}
    assert len(bridge.procedures) > len(URIS["celery_api"]) + 30


@pytest.mark.parametrize("authid", ["bridge", "operator"])
@pytest.mark.parametrize(
    "ticket",
    ["", "wrong", "$TWISTEDCELERY_TICKET", "${TWISTEDCELERY_TICKET}", "${TWISTEDCELERY_OPERATOR_TICKET}"],
)
@pytest_twisted.ensureDeferred
async def test_wrong_ticket(node: CrossbarNode, authid: str, ticket: str) -> None:
    """Nobody joins as bridge or operator without the secret, least of all with its variable's name."""
    with pytest.raises(ApplicationError, match="ticket in static WAMP-Ticket authentication is invalid"):
        async with client(node, authid, ticket):
            pass


@pytest_twisted.ensureDeferred
async def test_ticket_of_another_principal(node: CrossbarNode) -> None:
    """The bridge's secret makes nobody an operator."""
    with pytest.raises(ApplicationError, match="ticket in static WAMP-Ticket authentication is invalid"):
        async with client(node, "operator", TICKETS["bridge"]):
            pass


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:{port}", 101),
        ("http://localhost:{port}", 101),
        ("http://127.0.0.1:1", 400),
        ("http://example.com:{port}", 400),
        ("https://example.com", 400),
        ("null", 400),
    ],
)
def test_websocket_from_a_page(node: CrossbarNode, origin: str, status: int) -> None:
    """In a browser, only the node's own page can open its WebSocket."""
    request = (
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{node.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Origin: {origin.format(port=node.port)}\r\nSec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: wamp.2.json\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as connection:
        connection.sendall(request.encode())
        answer = connection.recv(4096).decode()
    assert answer.split()[1] == str(status)


@pytest_twisted.ensureDeferred
async def test_half_a_request(node: CrossbarNode) -> None:
    """A client that does not finish its request is disconnected; a WebSocket that says nothing stays."""

    def half() -> bytes:
        with socket.create_connection(("127.0.0.1", node.port), timeout=30) as connection:
            connection.sendall(b"POST /call HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{")
            return connection.recv(1)

    async with registrar(node), client(node, "operator", TICKETS["operator"]) as session:
        assert await deferToThread(half) == b""
        assert await session.call(TASK, 2, 3) == 5


def test_limits_for_clients() -> None:
    """No client holds a connection for ever, and Crossbar caches no name that callers choose."""
    (router, _) = node_config(ROOT, 8080)["workers"]
    (transport,) = router["transports"]
    assert transport["options"] == {"client_timeout": 30}
    assert transport["max_connections"] == 2000
    assert transport["endpoint"]["user_timeout"] == 20_000
    cached = {
        role["name"]
        for role in router["realms"][0]["roles"]
        for permission in role["permissions"]
        if permission["cache"]
    }
    assert cached == {"bridge"}


@pytest_twisted.ensureDeferred
async def test_the_bridge_is_killed(node: CrossbarNode, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """Where it is no container of the node, the router and its sessions stay, and the next bridge serves."""
    with rabbitmq.vhost() as broker:
        env = {
            **SECRETS,
            "CELERY_BROKER_URL": broker,
            "CELERY_RESULT_BACKEND": "rpc://",
            "PYTHONPATH": os.pathsep.join(SOURCES),
        }
        command = [sys.executable, "-m", "twistedcelery.cli", "bridge", "--url", node.url, "-A", "my_app"]
        bridge = Process(command, directory=tmp_path, name="bridge", env=env)
        bridge.start()
        try:
            async with client(node, "browser", None) as caller:
                await until_served(caller)
                # No worker answers it.
                call = caller.call(TASK, 2, 3)
                assert (await caller.call("celery_api.status"))["in_flight"] == 1
                bridge.kill()
                with pytest.raises(ApplicationError) as ended:
                    await call
                assert ended.value.error == ApplicationError.CANCELED
                bridge.start()
                await until_served(caller)
        finally:
            bridge.kill()


async def until_served(caller: Client) -> None:
    """Wait until a bridge answers."""
    while True:
        try:
            await caller.call("celery_api.status")
        except ApplicationError as error:
            if error.error != ApplicationError.NO_SUCH_PROCEDURE:
                raise
            await deferToThread(time.sleep, 0.05)
        else:
            return


def test_listens_on_the_loopback_interface_only(node: CrossbarNode) -> None:
    """No other address of the machine answers."""
    with pytest.raises(ConnectionRefusedError):
        # Linux delivers all of 127.0.0.0/8 to whoever listens on every address.
        socket.create_connection(("127.0.0.2", node.port), timeout=10)


def signed(secret: str, body: bytes) -> str:
    """The path and query of a POST to ``/call``, signed as Crossbar documents it."""
    timestamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    digest = hmac.digest(secret.encode(), f"{KEY}{timestamp}12".encode() + body, hashlib.sha256)
    query = {"key": KEY, "timestamp": timestamp, "seq": 1, "nonce": 2}
    query["signature"] = base64.urlsafe_b64encode(digest).decode()
    return "/call?" + urllib.parse.urlencode(query)


def post(node: CrossbarNode, secret: str | None, procedure: str, *args: Any) -> tuple[int, Any]:
    """Status and body of a POST to ``/call``, signed if there is a secret."""
    body = json.dumps({"procedure": procedure, "args": args}).encode()
    return send(node, "/call" if secret is None else signed(secret, body), body)


def post_signed(node: CrossbarNode, **event: Any) -> tuple[int, Any]:
    """Status and body of a POST of any JSON."""
    body = json.dumps(event).encode()
    return send(node, signed(SECRETS["TWISTEDCELERY_CALL_SECRET"], body), body)


def send(node: CrossbarNode, path: str, body: bytes) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{node.port}{path}"
    try:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest_twisted.ensureDeferred
async def test_http_call(node: CrossbarNode) -> None:
    """A signed POST to /call gets the procedure's result."""
    async with registrar(node):
        answer = await deferToThread(post, node, SECRETS["TWISTEDCELERY_CALL_SECRET"], TASK, 2, 3)
    assert answer == (200, {"args": [5]})


@pytest_twisted.ensureDeferred
async def test_http_call_with_curl(node: CrossbarNode) -> None:
    """The example of the guide works as it is printed, but for the port."""
    require("curl")
    require("openssl")
    guide = (ROOT / "docs" / "bridge.md").read_text()
    (example,) = [block for block in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL) if "curl" in block]
    command = ["sh", "-e", "-c", example.replace("8080", str(node.port))]
    env = {**os.environ, **SECRETS}
    async with registrar(node):
        answer = await deferToThread(
            subprocess.run, command, env=env, capture_output=True, text=True, check=False, timeout=30
        )
    assert (answer.stderr, json.loads(answer.stdout)) == ("", {"args": [5]})


@pytest_twisted.ensureDeferred
async def test_http_call_with_bytes(node: CrossbarNode) -> None:
    """Bytes come over /call as WAMP writes them in JSON."""
    async with registrar(node):
        answer = await deferToThread(post, node, SECRETS["TWISTEDCELERY_CALL_SECRET"], API)
    assert answer == (200, {"args": ["\0" + base64.b64encode(b"\x89PNG").decode()]})


@pytest_twisted.ensureDeferred
async def test_http_call_for_operators(node: CrossbarNode) -> None:
    """/call gives no access to what needs an operator's ticket."""
    async with registrar(node):
        status, body = await deferToThread(post, node, SECRETS["TWISTEDCELERY_CALL_SECRET"], ADMIN)
    assert (status, body["error"]) == (403, ApplicationError.NOT_AUTHORIZED)


@pytest_twisted.ensureDeferred
async def test_http_call_that_fails(node: CrossbarNode) -> None:
    """The status tells the kind of failure; the body has the error, its arguments and keywords."""
    statuses = {
        "celery.error.invalid_arguments": 400,
        "celery.error.not_allowed": 403,
        "other.error.unknown_task": 404,
        "celery.error.revoked": 409,
        "celery.error.task_failed": 500,
        "com.example.anything": 500,
        "celery.error.worker_lost": 502,
        "celery.error.overloaded": 503,
        "celery.error.timeout": 504,
    }

    def fail(uri: str) -> None:
        raise ApplicationError(uri, "why", task_id="id-1", data=b"x")

    async with registrar(node) as session:
        await session.register(fail, "celery.fail")
        answers = {
            uri: await deferToThread(post_signed, node, procedure="celery.fail", args=[uri])
            for uri in statuses
        }
        nobody = await deferToThread(post_signed, node, procedure="celery.nobody")
        no_uri = await deferToThread(post_signed, node, procedure="celery. x")
    details = {"args": ["why"], "kwargs": {"task_id": "id-1", "data": "\0eA=="}}
    assert answers == {uri: (status, {"error": uri, **details}) for uri, status in statuses.items()}
    assert (nobody[0], nobody[1]["error"]) == (404, ApplicationError.NO_SUCH_PROCEDURE)
    assert (no_uri[0], no_uri[1]["error"]) == (400, ApplicationError.INVALID_URI)


@pytest.mark.parametrize(
    "event",
    [
        {"procedure": TASK, "args": ["\ud83d"]},
        {"procedure": TASK, "kwargs": {"\ud83d": 1}},
        {"procedure": "celery.\ud83d"},
        {"procedure": 5},
        {"procedure": TASK, "args": {"x": 1}},
        {"procedure": TASK, "kwargs": [1]},
        {},
    ],
)
@pytest_twisted.ensureDeferred
async def test_http_call_that_is_none(event: dict[str, Any], node: CrossbarNode) -> None:
    """What WAMP cannot carry, or names no procedure, is refused."""
    async with registrar(node):
        status, _ = await deferToThread(post_signed, node, **event)
    assert status == 400


@pytest_twisted.ensureDeferred
async def test_http_call_that_is_repeated(node: CrossbarNode) -> None:
    """Who captures a signed request cannot send it again."""
    body = json.dumps({"procedure": TASK, "args": [2, 3]}).encode()
    path = signed(SECRETS["TWISTEDCELERY_CALL_SECRET"], body)
    async with registrar(node):
        answers = [await deferToThread(send, node, path, body) for _ in range(3)]
    assert [status for status, _ in answers] == [200, 401, 401]


@pytest_twisted.ensureDeferred
async def test_http_call_with_any_keywords(node: CrossbarNode) -> None:
    """Names that Autobahn and Crossbar use for themselves are a task's, too."""
    kwargs = {"self": 1, "procedure": "x", "options": {"y": 2}, "args": [], "kwargs": {}, "details": None}
    async with registrar(node) as session:
        receive = session.onMessage

        def receive_keywords(message: Any) -> None:
            # As the bridge does: Autobahn's callee would clash with some names itself.
            if isinstance(message, Invocation):
                message.kwargs = {"keywords": message.kwargs}
            receive(message)

        session.onMessage = receive_keywords  # type: ignore[method-assign]
        await session.register(lambda keywords: keywords, "celery.keywords")
        answer = await deferToThread(post_signed, node, procedure="celery.keywords", kwargs=kwargs)
    assert answer == (200, {"args": [kwargs]})


@pytest_twisted.ensureDeferred
async def test_http_call_whose_client_hangs_up(node: CrossbarNode) -> None:
    """The call is cancelled, as that of a WAMP caller who leaves."""
    called: Deferred[None] = Deferred()
    cancelled: Deferred[None] = Deferred()

    def wait() -> Deferred[None]:
        called.callback(None)
        return Deferred(lambda _: cancelled.callback(None))

    body = json.dumps({"procedure": "celery.wait"}).encode()
    path = signed(SECRETS["TWISTEDCELERY_CALL_SECRET"], body)
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    async with registrar(node) as session:
        await session.register(wait, "celery.wait")
        with socket.create_connection(("127.0.0.1", node.port), timeout=10) as connection:
            connection.sendall(request)
            await called
        await cancelled
        assert (await deferToThread(post_signed, node, procedure=TASK))[0] == 200


@pytest.mark.parametrize(("secret", "status"), [(None, 400), ("", 401), ("wrong", 401)])
@pytest_twisted.ensureDeferred
async def test_http_call_badly_signed(node: CrossbarNode, secret: str | None, status: int) -> None:
    """/call refuses what is not signed with the secret."""
    async with registrar(node):
        answer, _ = await deferToThread(post, node, secret, TASK, 2, 3)
    assert answer == status


#: What Crossbar itself writes of tickets, at its level ``debug``: those that it is configured with, that
#: arrive, and that others should have been.
CROSSBARS_OWN = ("maybe_from_env", "onAuthenticate", "PendingAuthTicket")


@pytest.mark.parametrize(
    ("loglevel", "backend", "named"),
    [
        ("debug", "redis://:results-secret@127.0.0.1:1/0", "redis://127.0.0.1"),
        pytest.param(
            *("info", "redis://:results-secret@127.0.0.1:1/0", "redis://127.0.0.1"), marks=pytest.mark.soak
        ),
        pytest.param("debug", "rpc://", "amqp://joe@", marks=pytest.mark.soak),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_secret_is_logged(
    loglevel: str, backend: str, named: str, crossbar_node: Callable[..., CrossbarNode], rabbitmq: RabbitMQ
) -> None:
    """Whatever goes wrong with brokers and callers: no secret is in a log, but for what Crossbar writes."""
    port = free_port()
    config = node_config(ROOT, port)
    config["workers"][1]["components"][0]["extra"]["publish_timeout"] = 1
    # Nobody listens on the first; the second does not know joe.
    ports = (1, rabbitmq.port)
    env = {
        **SECRETS,
        "CELERY_BROKER_URL": ";".join(f"amqp://joe:brokers-secret@127.0.0.1:{port}//" for port in ports),
        "CELERY_RESULT_BACKEND": backend,
    }
    node = await deferToThread(crossbar_node, config, port=port, env=env, loglevel=loglevel)
    await deferToThread(node.process.wait_for_output, "the bridge serves")
    answers = [
        await deferToThread(post, node, secret, procedure, 2, 3)
        for secret in (SECRETS["TWISTEDCELERY_CALL_SECRET"], "a wrong one")
        for procedure in (TASK, API, ADMIN)
    ]
    with pytest.raises(ApplicationError):
        async with client(node, "operator", "a wrong ticket"):
            pass
    async with client(node, "operator", TICKETS["operator"]) as operator:
        with pytest.raises(ApplicationError) as refused:
            await operator.call(TASK, 2, 3)
    assert refused.value.error == "celery.error.broker_unavailable"
    secrets = [*SECRETS.values(), "brokers-secret", "results-secret"]
    lines = [json.dumps(answers), str(refused.value), *node.process.output().splitlines()]
    said = [line for line in lines if any(secret in line for secret in secrets)]
    assert any(" [Container " in line and named in line for line in lines)
    if loglevel == "debug":
        said = [line for line in said if not any(own in line for own in CROSSBARS_OWN)]
    assert said == []


def test_crossbar_accepts_the_configuration() -> None:
    """``crossbar check`` finds nothing wrong with the file as it is shipped."""
    command = [python_program("crossbar"), "check", "--cbdir", str(ROOT / "crossbar" / ".crossbar")]
    # Crossbar ends without flushing what it printed.
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert checked.returncode == 0, checked.stdout
    assert "node configuration looks good" in checked.stdout


def test_the_secrets_the_node_insists_on() -> None:
    """The node insists on every secret that it reads."""
    assert set(secret_variables(node_config(ROOT, 8080))) == set(SECRETS)


SECRET_MISSING = "the environment variable TWISTEDCELERY_TICKET is {}: it must hold a secret"


# Crossbar imports it.
@pytest.mark.filterwarnings("ignore:websockets.legacy:DeprecationWarning")
@pytest.mark.parametrize(("value", "state"), [(None, "not set"), ("", "empty"), ("  ", "empty")])
def test_a_variable_without_a_secret(monkeypatch: pytest.MonkeyPatch, value: str | None, state: str) -> None:
    """It is refused whether it is unset, empty or blank."""
    from twistedcelery.wamp.http_call import secret

    monkeypatch.delenv("TWISTEDCELERY_TICKET", raising=False)
    if value is not None:
        monkeypatch.setenv("TWISTEDCELERY_TICKET", value)
    with pytest.raises(ConfigurationError, match=SECRET_MISSING.format(state)):
        secret("TWISTEDCELERY_TICKET")


@pytest.mark.parametrize(
    "value",
    [None, pytest.param("", marks=pytest.mark.soak), pytest.param("  ", marks=pytest.mark.soak)],
    ids=["unset", "empty", "blank"],
)
def test_missing_secret(
    crossbar_node: Callable[..., CrossbarNode], monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """The node ends, and says why, when a secret is missing."""
    monkeypatch.delenv("TWISTEDCELERY_TICKET", raising=False)
    env = {name: text for name, text in SECRETS.items() if name != "TWISTEDCELERY_TICKET"}
    if value is not None:
        env["TWISTEDCELERY_TICKET"] = value
    port = free_port()
    with pytest.raises(AssertionError) as ended:
        crossbar_node(node_config(ROOT, port), port=port, env=env)
    said = str(ended.value)
    assert SECRET_MISSING.format("not set" if value is None else "empty") in said
    assert "ended with 1" in said
