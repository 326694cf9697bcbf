"""The configurations of ``docs/authorisation.md``, as printed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WampWebSocketClientFactory
from autobahn.wamp.auth import create_authenticator
from autobahn.wamp.cryptosign import CryptosignKey
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import ComponentConfig, RegisterOptions
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.internet.threads import deferToThread

from tests.real.wamp.client import Client
from tests.support.debian import require
from tests.support.node import CrossbarNode
from tests.support.ports import free_port, reachable
from tests.support.process import ROOT, wait_until

SECRETS = {
    name: f"the secret {name}"
    for name in ("TWISTEDCELERY_TICKET", "STAFF_TICKET", "ADD_TICKET", "JOE_SECRET")
}
JOES_KEY, OTHER_KEY = "11" * 32, "22" * 32

ADD, FAIL = "celery.my_app.tasks.add", "celery.my_app.tasks.fail"
#: Answers of the bridge, to calls without arguments.
REACHED, ANSWERED = "celery.error.invalid_arguments", None
DENIED, NOBODY = ApplicationError.NOT_AUTHORIZED, ApplicationError.NO_SUCH_PROCEDURE

anonymous: dict[str, Any] = {"anonymous": {}}


def ticket(authid: str, secret: str) -> dict[str, Any]:
    return {"ticket": {"authid": authid, "ticket": secret}}


def wampcra(authid: str, secret: str) -> dict[str, Any]:
    return {"wampcra": {"authid": authid, "secret": secret}}


def cryptosign(authid: str, key: str) -> dict[str, Any]:
    return {"cryptosign": {"authid": authid, "privkey": key}}


STAFF = ticket("staff", SECRETS["STAFF_TICKET"])
NAMED = ticket("add", SECRETS["ADD_TICKET"])
JOE = wampcra("joe", SECRETS["JOE_SECRET"])
KEY = cryptosign("joe", JOES_KEY)

#: By section: who does what, and what comes of it.
PROBES: dict[str, list[tuple[dict[str, Any], str, str, str | None]]] = {
    "Tasks for roles, by ticket": [
        (anonymous, "call", ADD, REACHED),
        (anonymous, "call", "celery.my_app.tasks.Add", DENIED),
        (anonymous, "call", "celery.my_app.tasks.\u0430dd", DENIED),
        (anonymous, "call", FAIL, DENIED),
        (anonymous, "call", "celery_api.tasks", DENIED),
        (anonymous, "call", "celery_admin.leader", DENIED),
        (anonymous, "subscribe", f"{ADD}.succeeded", DENIED),
        (anonymous, "register", ADD, DENIED),
        (STAFF, "call", FAIL, REACHED),
        (STAFF, "call", "celery.my_app.tasks.Add", NOBODY),
        (STAFF, "subscribe", f"{ADD}.succeeded", None),
        (STAFF, "call", "celery_api.tasks", DENIED),
        (STAFF, "register", ADD, DENIED),
        (ticket("staff", SECRETS["TWISTEDCELERY_TICKET"]), "join", "", DENIED),
        (ticket("staff", ""), "join", "", DENIED),
    ],
    "A dynamic authorizer": [
        (NAMED, "call", ADD, REACHED),
        (NAMED, "call", FAIL, DENIED),
        (NAMED, "subscribe", f"{ADD}.succeeded", DENIED),
        (NAMED, "register", ADD, DENIED),
        (NAMED, "call", "com.example.authorize", DENIED),
        (anonymous, "join", "", "wamp.error.no_auth_method"),
    ],
    "WAMP-CRA": [
        (JOE, "call", ADD, REACHED),
        (JOE, "call", "celery_api.tasks", ANSWERED),
        (JOE, "register", ADD, DENIED),
        (wampcra("joe", "wrong"), "join", "", DENIED),
        (ticket("joe", SECRETS["JOE_SECRET"]), "join", "", "wamp.error.no_auth_method"),
        (anonymous, "join", "", "wamp.error.no_auth_method"),
    ],
    "Cryptosign": [
        (KEY, "call", ADD, REACHED),
        (KEY, "call", "celery_api.tasks", ANSWERED),
        (KEY, "call", "celery_admin.leader", DENIED),
        (cryptosign("joe", OTHER_KEY), "join", "", DENIED),
        (anonymous, "join", "", "wamp.error.no_auth_method"),
    ],
    "TLS": [
        (anonymous, "call", ADD, REACHED),
        (anonymous, "call", "celery_api.tasks", ANSWERED),
        (anonymous, "register", ADD, DENIED),
    ],
}


class Guest(Client):
    """A client that proves who it is."""

    def __init__(self, method: str, options: dict[str, Any]) -> None:
        super().__init__(ComponentConfig("realm1"))
        self._method, self._authid = method, options.get("authid")
        self._proof = None if method == "anonymous" else create_authenticator(method, **options)

    def onConnect(self) -> None:
        extra = {} if self._proof is None else self._proof.authextra
        self.join("realm1", authmethods=[self._method], authid=self._authid, authextra=extra)

    def onChallenge(self, challenge: Any) -> Any:
        return self._proof.on_challenge(self, challenge)

    def onLeave(self, details: Any) -> Any:
        if not self.joined.called:
            self.joined.errback(ApplicationError(details.reason))
        return super().onLeave(details)


def test_every_configuration_is_probed() -> None:
    """No section of the guide has a configuration that no test starts."""
    assert set(sections()) == set(PROBES)


def sections() -> dict[str, str]:
    """The sections that have a configuration, by title."""
    parts = re.split(r"^## (.*)\n", (ROOT / "docs" / "authorisation.md").read_text(), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {title: text for title, text in found.items() if "```json" in text}


class Guide:
    """One node with the workers of every section: each on a port of its own, the rest as printed."""

    def __init__(self, directory: Path) -> None:
        self.ports = {title: free_port() for title in sections()}
        #: The certificate of the section on TLS.
        self.authority = directory / "server.crt"
        workers = []
        for title, port in self.ports.items():
            config = prepare(title, directory, port)
            assert config.keys() == {"version", "workers"}
            workers += config["workers"]
        config = {"version": 2, "workers": workers}
        self.node = CrossbarNode(directory, config, port=self.ports["WAMP-CRA"], env=SECRETS)

    def start(self) -> None:
        self.node.process.start()
        for port in self.ports.values():
            wait_until(lambda port=port: reachable(port), timeout=120, what="the routers listen")


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guide]:
    """The guide's configurations, running."""
    new = Guide(tmp_path_factory.mktemp("guide"))
    try:
        new.start()
        yield new
    finally:
        new.node.kill()


def prepare(title: str, directory: Path, port: int) -> dict[str, Any]:
    """Write a section's files, and return its configuration."""
    text = sections()[title]
    (config,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert not re.search(r"secret .*[A-Z]", config)
    public = CryptosignKey.from_bytes(bytes.fromhex(JOES_KEY)).public_key()
    config = config.replace("8080", str(port)).replace("PUBLIC_KEY_IN_HEX", public)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        (directory / "authorizer.py").write_text(code)
    if "server.crt" in config:
        require("openssl")
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext"
        files = ["subjectAltName=DNS:localhost", "-keyout", "server.key", "-out", "server.crt"]
        subprocess.run([*command.split(), *files], cwd=directory, check=True, capture_output=True)
    made: dict[str, Any] = json.loads(config)
    return made


async def guest(methods: dict[str, Any], url: str, port: int, authority: Path | None) -> Guest:
    from twisted.internet import reactor

    ((method, options),) = methods.items()
    session = Guest(method, options)
    endpoint: Any = HostnameEndpoint(reactor, "localhost", port)
    if authority is not None:
        trusted = Certificate.loadPEM(authority.read_text())
        endpoint = wrapClientTLS(optionsForClientTLS("localhost", trusted), endpoint)
    await endpoint.connect(WampWebSocketClientFactory(lambda: session, url=url))
    return await session.joined


async def attempt(session: Guest, action: str, uri: str) -> None:
    if action == "call":
        await session.call(uri)
    elif action == "register":
        # The bridge's own policy, so that it is not refused for another.
        await session.register(lambda: None, uri, RegisterOptions(invoke="roundrobin"))
    elif action == "subscribe":
        await session.subscribe(lambda: None, uri)


@pytest.mark.parametrize("title", PROBES)
@pytest_twisted.ensureDeferred
async def test_a_configuration_of_the_guide(title, bridge_process, guide):
    """Each starts as it is printed, the bridge joins it, and it lets through what it says and no more."""
    port = guide.ports[title]
    authority = guide.authority if title == "TLS" else None
    url = f"{'ws' if authority is None else 'wss'}://localhost:{port}/ws"
    env = {} if authority is None else {"SSL_CERT_FILE": str(authority)}
    process = bridge_process(url, SECRETS["TWISTEDCELERY_TICKET"], env, app="my_app")
    await deferToThread(process.wait_for_output, "the bridge serves")
    assert "could not be registered" not in process.output()
    allowed = next(methods for methods, *_, expected in PROBES[title] if expected == REACHED)
    bystander = await guest(allowed, url, port, authority)
    outcomes = []
    for methods, action, uri, _ in PROBES[title]:
        try:
            session = await guest(methods, url, port, authority)
        except ApplicationError as error:
            outcomes.append((methods, action, uri, error.error))
            continue
        try:
            await attempt(session, action, uri)
        except ApplicationError as error:
            outcomes.append((methods, action, uri, error.error))
        else:
            outcomes.append((methods, action, uri, None))
        await session.close()
        # Whatever one is refused, the calls of another get through.
        with pytest.raises(ApplicationError, match=REACHED):
            await bystander.call(ADD)
    await bystander.close()
    assert outcomes == PROBES[title]
    output = guide.node.process.output() + process.output()
    assert [secret for secret in SECRETS.values() if secret in output] == []


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_is_not_trusted(bridge_process, guide):
    """Over TLS the bridge tells no secret to a router whose certificate it cannot check."""
    port = guide.ports["TLS"]
    process = bridge_process(f"wss://localhost:{port}/ws", SECRETS["TWISTEDCELERY_TICKET"], app="my_app")
    await deferToThread(process.wait_for_output, "certificate verify failed")
    assert "joined" not in process.output()
    assert reachable(port)
