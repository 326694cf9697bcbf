"""Brokers that speak TLS, and messages that are signed."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys

import kombu
import pytest
import pytest_twisted
from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.ssl import Certificate as Authority
from twisted.internet.ssl import PrivateCertificate
from twisted.protocols.portforward import ProxyFactory

import twistedcelery
from tests.support import taskapp
from tests.support.certificates import Certificate, make_authority
from tests.support.process import ROOT, SOURCES
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery

# Twisted gives pyOpenSSL a client's certificate and key as pyOpenSSL's own objects.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Passing pyOpenSSL .* objects is deprecated:DeprecationWarning"
)


#: The settings of all who sign; keys and certificates are each one's own.
SIGNED = {"task_serializer": "auth", "result_serializer": "auth", "event_serializer": "auth"} | {
    "accept_content": ["auth"]
}


class TLS:
    """What takes TLS connections in front of RabbitMQ, and the files that clients need.

    :ivar url: the broker's URL, without TLS
    """

    def __init__(self, directory, broker_url):
        self.authority = make_authority(directory)
        self.client = Certificate(directory, "client", issuer=self.authority)
        self._server = Certificate(directory, "server", issuer=self.authority)
        self._target = kombu.Connection(broker_url)
        self._port = None

    def listen(self, *, ask_for_certificate):
        """Take connections.

        :param ask_for_certificate: whether clients must show one of the authority's
        """
        pem = self._server.file.read_bytes() + self._server.key_file.read_bytes()
        trusted = [Authority.loadPEM(self.authority.file.read_bytes())] if ask_for_certificate else []
        factory = ProxyFactory("127.0.0.1", self._target.port)
        factory.noisy = False
        options = PrivateCertificate.loadPEM(pem).options(*trusted)
        self._port = reactor.listenSSL(0, factory, options, interface="127.0.0.1")

    def url(self, scheme="amqps"):
        return f"{scheme}://guest:guest@127.0.0.1:{self._port.getHost().port}/{self._target.virtual_host}"

    async def close(self):
        if self._port is not None:
            await self._port.stopListening()


@pytest.fixture
def tls(tmp_path, broker_url):
    made = TLS(tmp_path, broker_url)
    yield made
    pytest_twisted.blockon(ensureDeferred(made.close()))


async def published(url, **settings):
    """Publish a task over a connection of its own."""
    tx_app = TwistedCelery(create_app(url, None, **settings), publish_timeout=1.5)
    try:
        await tx_app.send_task("taskapp.add", args=(1, 2), ignore_result=True)
    finally:
        await tx_app.disconnect()


@pytest_twisted.ensureDeferred
async def test_a_broker_that_can_be_trusted(tls):
    """``amqps://`` with the authority's certificate, and ``broker_use_ssl`` beside a plain URL."""
    tls.listen(ask_for_certificate=False)
    trust = {"ca_certs": str(tls.authority.file)}
    await published(tls.url(), broker_use_ssl=trust)
    await published(tls.url("amqp"), broker_use_ssl={**trust, "cert_reqs": ssl.CERT_REQUIRED})
    await published(tls.url(), broker_use_ssl={**trust, "server_hostname": "127.0.0.1"})


@pytest_twisted.ensureDeferred
async def test_a_broker_that_asks_for_a_certificate(tls):
    """A client shows the one that the settings name; without one it is refused."""
    tls.listen(ask_for_certificate=True)
    trust = {"ca_certs": str(tls.authority.file)}
    own = {"certfile": str(tls.client.file), "keyfile": str(tls.client.key_file)}
    await published(tls.url(), broker_use_ssl={**trust, **own})
    with pytest.raises(twistedcelery.BrokerUnavailable):
        await published(tls.url(), broker_use_ssl=trust)


@pytest_twisted.ensureDeferred
async def test_a_broker_that_cannot_be_trusted(tls, tmp_path):
    """Verification is on by default: another authority, another host or no authority sends nothing."""
    tls.listen(ask_for_certificate=False)
    (tmp_path / "other").mkdir()
    other = {"ca_certs": str(make_authority(tmp_path / "other").file)}
    trust = {"ca_certs": str(tls.authority.file)}
    for url, settings, complaint in (
        (tls.url(), {}, "certificate verify failed"),
        (tls.url("amqp"), {"broker_use_ssl": True}, "certificate verify failed"),
        (tls.url(), {"broker_use_ssl": other}, "certificate verify failed"),
        (tls.url(), {"broker_use_ssl": {**trust, "server_hostname": "broker.example"}}, "VerificationError"),
        (tls.url(), {"broker_use_ssl": {"ca_certs": str(tmp_path / "nowhere.pem")}}, "nowhere"),
        (tls.url(), {"broker_use_ssl": {"ca_cert": "misspelt"}}, "broker_use_ssl has ca_cert"),
    ):
        with pytest.raises(twistedcelery.BrokerUnavailable, match=complaint):
            await published(url, **settings)
    # Who wants none of that has to say so.
    await published(tls.url(), broker_use_ssl={"cert_reqs": ssl.CERT_NONE})


# Signed messages


@pytest.mark.timeout(120)
def test_signed_messages(broker_url, worker, tmp_path):
    """Tasks and replies are signed and verified, and what strangers sign counts for nothing, either way."""

    def party(name, knows):
        """Settings of one who signs: a key, a certificate, and the certificates of those it knows."""
        store = tmp_path / f"known-to-{name}"
        store.mkdir()
        for other in knows:
            (store / f"{other}.pem").write_bytes(keys[other].file.read_bytes())
        own = {"security_key": str(keys[name].key_file), "security_certificate": str(keys[name].file)}
        return {**SIGNED, **own, "security_cert_store": str(store / "*.pem")}

    def call(settings, *arguments):
        environment = {
            "PYTHONPATH": os.pathsep.join(SOURCES),
            taskapp.BROKER: broker_url,
            taskapp.BACKEND: "rpc://",
            taskapp.CONFIG: json.dumps(settings),
        }
        ran = subprocess.run(
            [sys.executable, "-m", "tests.support.signedapp", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=40,
            check=True,
        )
        return ran.stdout.strip()

    keys = {
        name: Certificate(tmp_path, name, key=rsa.generate_private_key(65537, 2048))
        for name in ("worker", "client", "stranger")
    }
    worker(app="tests.support.signedapp", config=party("worker", knows=["worker", "client"]))
    marker = tmp_path / "ran"
    assert call(party("stranger", knows=["worker"]), "taskapp.touch", str(marker)) == ""
    friend = party("client", knows=["worker", "client"])
    assert call(friend, "taskapp.add", "two and ", "three") == "two and three"
    assert not marker.exists()
    assert call(friend, "taskapp.fail", "signed, too") == "ValueError: signed, too"
    suspicious = {**friend, "security_cert_store": str(keys["client"].file)}
    answer = call(suspicious, "taskapp.add", "1", "2")
    assert answer.startswith("ReplyUndecodable: ")
    assert "Unknown certificate" in answer


@pytest_twisted.ensureDeferred
async def test_a_login_method_that_the_broker_does_not_offer(broker_url, new_client):
    """It is refused at once; the client does not fall back on a password."""
    tx_app = new_client(create_app(broker_url, "rpc://", broker_login_method="EXTERNAL"))
    with pytest.raises(twistedcelery.BrokerAccessRefused):
        await tx_app.send_task("taskapp.add", args=(1, 2), ignore_result=True)
    unknown = new_client(create_app(broker_url, "rpc://", broker_login_method="AMQPLAIN"))
    with pytest.raises(twistedcelery.ConfigurationError, match="broker_login_method is 'AMQPLAIN'"):
        await unknown.send_task("taskapp.add", args=(1, 2), ignore_result=True)


@pytest_twisted.ensureDeferred
async def test_client_properties_are_in_the_list_of_connections(rabbitmq, broker_url, new_client):
    """With them an operator finds the process that a connection belongs to."""
    name = f"web-{broker_url[-8:]}"
    options = {"client_properties": {"connection_name": name}}
    tx_app = new_client(create_app(broker_url, "rpc://", broker_transport_options=options))
    await tx_app.send_task("taskapp.add", args=(1, 2), ignore_result=True)
    found = rabbitmq.eval("rabbit_networking:connection_info_all([client_properties]).")
    # It comes as the bytes' numbers.
    assert ",".join(map(str, name.encode())) in found
