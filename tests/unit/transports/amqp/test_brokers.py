"""Celery's broker settings in, endpoints and handshake parameters out."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet.testing import MemoryReactorClock

from twistedcelery.errors import ConfigurationError
from twistedcelery.transports.amqp.brokers import AmqpParameters, Brokers
from twistedcelery.transports.connection import Server


def brokers(url: Any, heartbeat: float = 10, **settings: Any) -> Brokers:
    app = Celery("unit", broker=url, set_as_current=False)
    app.conf.update(settings)
    return Brokers(app.connection_for_write(), MemoryReactorClock(), heartbeat)


def current(url: Any, **settings: Any) -> Server:
    return brokers(url, **settings).current()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a certificate and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker.example")])
    begin = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=36_500))
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file


# URLs


@pytest.mark.parametrize(
    ("url", "address", "password", "virtual_host"),
    [
        ("amqp://u:p%40ss@host.example:1234/v", "amqp://u@host.example:1234/v", "p@ss", "v"),
        ("amqp://host.example", "amqp://guest@host.example:5672/", "guest", "/"),
        ("amqp://host.example//", "amqp://guest@host.example:5672/", "guest", "/"),
        ("amqp://host.example/%2fv", "amqp://guest@host.example:5672/v", "guest", "/v"),
        ("pyamqp://u@host.example/v", "amqp://u@host.example:5672/v", "guest", "v"),
        ("amqps://host.example/v", "amqps://guest@host.example:5671/v", "guest", "v"),
        ("amqp://[::1]:5673/v", "amqp://guest@[::1]:5673/v", "guest", "v"),
        ("amqp://localhost/v", "amqp://guest@127.0.0.1:5672/v", "guest", "v"),
    ],
)
def test_urls(url, address, password, virtual_host):
    """A URL is read as kombu reads it, with AMQP's defaults."""
    broker = current(url)
    assert broker.address == address
    assert broker.parameters.password == password
    assert broker.parameters.virtual_host == virtual_host


def test_the_address_is_for_people():
    """No password is in it, and none in what is shown of the parameters."""
    broker = current("amqp://user:s3cr3t@host.example/v")
    assert broker.parameters.userid == "user"
    assert "s3cr3t" not in broker.address


def test_settings_stand_in_for_what_the_url_leaves_out():
    """Celery's separate settings count where the URL is silent."""
    broker = current(
        "amqp://host.example", broker_user="u", broker_password="p", broker_port=99, broker_vhost="v"
    )
    assert broker.address == "amqp://u@host.example:99/v"
    assert broker.parameters.password == "p"


def test_a_password_may_be_a_function():
    """A password that expires is asked for at each attempt."""
    passwords = iter(["one", "two"])
    tried = brokers("amqp://u@host.example")
    tried._connection.password = lambda: next(passwords)
    assert [tried.current().parameters.password for _ in range(2)] == ["one", "two"]


def test_parameters():
    """The handshake's other parameters."""
    assert brokers("amqp://host.example", heartbeat=7.5).current().parameters == AmqpParameters(
        userid="guest",
        password="guest",
        virtual_host="/",
        heartbeat=7,
        client_properties={"connection_name": "twistedcelery"},
    )


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"heartbeat": 3}, {"heartbeat": 3}),
        ({"heartbeat": 0}, {"heartbeat": 0}),
        ({"userid": "me", "password": "pw"}, {"userid": "me", "password": "pw"}),
        ({"virtual_host": "v"}, {"virtual_host": "v"}),
        ({"login_method": "EXTERNAL"}, {"external": True}),
        ({"channel_max": 100, "frame_max": 8192}, {"limits": {"channel_max": 100, "frame_max": 8192}}),
        (
            {"client_properties": {"connection_name": "web-1", "tier": "front"}},
            {"client_properties": {"connection_name": "web-1", "tier": "front"}},
        ),
        (
            {"client_properties": {"tier": "front"}},
            {"client_properties": {"connection_name": "twistedcelery", "tier": "front"}},
        ),
        # They have no meaning here.
        ({"confirm_publish": True, "read_timeout": 1, "write_timeout": 1, "max_retries": 3}, {}),
    ],
)
def test_transport_options(options, parameters):
    """``broker_transport_options`` come before other settings, as with kombu."""
    plain = current("amqp://host.example").parameters
    found = current("amqp://host.example", broker_transport_options=options).parameters
    assert found == replace(plain, **parameters)


def test_the_time_for_an_attempt_in_the_options():
    """``connect_timeout`` comes before ``broker_connection_timeout``."""
    tried = brokers(
        "amqp://host.example",
        broker_connection_timeout=9,
        broker_transport_options={"connect_timeout": 2},
    )
    assert tried.connect_timeout == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_login_method": "AMQPLAIN"},
        {"broker_login_method": "GSSAPI"},
        {"broker_login_method": "anything"},
        {"broker_transport_options": {"login_method": "AMQPLAIN"}},
        {"broker_transport_options": {"login_response": b"x"}},
        {"broker_transport_options": {"authentication": [object()]}},
        {"broker_transport_options": {"on_blocked": print}},
    ],
)
def test_options_that_cannot_be_obeyed(settings):
    """They are refused, with the transport that obeys them."""
    with pytest.raises(ConfigurationError, match="threads"):
        brokers("amqp://host.example", **settings)


@pytest.mark.parametrize(("setting", "seconds"), [({}, 4.0), ({"broker_connection_timeout": 9}, 9.0)])
def test_the_time_for_an_attempt(setting, seconds):
    """``broker_connection_timeout`` limits each attempt."""
    assert brokers("amqp://host.example", **setting).connect_timeout == seconds


def test_the_endpoint_connects_where_the_address_says():
    """What is connected to is what is shown."""
    reactor = MemoryReactorClock()
    app = Celery("unit", broker="amqp://127.0.0.1:4321//", set_as_current=False)
    endpoint = Brokers(app.connection_for_write(), reactor, 0).current().endpoint
    assert (endpoint._hostText, endpoint._port) == ("127.0.0.1", 4321)


# Failover


def addresses(url: Any, count: int, **settings: Any) -> list[str]:
    tried = brokers(url, **settings)
    found = []
    for _ in range(count):
        found.append(tried.current().address)
        tried.advance()
    return found


@pytest.mark.parametrize(
    "url", ["amqp://a.example;amqp://b.example;amqp://c.example", [f"amqp://{n}.example" for n in "abc"]]
)
def test_brokers_are_tried_in_turn(url):
    """A failover list goes round, in its order."""
    assert addresses(url, 4) == [f"amqp://guest@{name}.example:5672/" for name in "abca"]


def test_each_broker_has_its_own_settings():
    """What one URL says, and the next does not, is not carried over."""
    assert addresses("amqp://u:p@a.example:1234/v;amqps://b.example;amqp://c.example", 4) == [
        "amqp://u@a.example:1234/v",
        "amqps://guest@b.example:5671/",
        "amqp://guest@c.example:5672/",
        "amqp://u@a.example:1234/v",
    ]


def test_one_broker_stays():
    """There is nothing to turn to, and nothing of the URL is lost."""
    assert addresses("amqp://u@a.example:1234/v", 3) == ["amqp://u@a.example:1234/v"] * 3


def test_the_failover_strategy_is_the_settings():
    """``broker_failover_strategy`` says in which order brokers are tried."""

    def backwards(alternatives: list[str]) -> Any:
        while True:
            yield from reversed(alternatives)

    url = "amqp://a.example;amqp://b.example;amqp://c.example"
    assert addresses(url, 3, broker_failover_strategy=backwards)[1:] == [
        "amqp://guest@b.example:5672/",
        "amqp://guest@a.example:5672/",
    ]


# TLS


def options(settings: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Twisted is asked for."""
    asked: dict[str, Any] = {}

    def remember(hostname: str, **named: Any) -> Any:
        asked.update(named, hostname=hostname)
        return "options"

    monkeypatch.setattr("twistedcelery.transports.tls.optionsForClientTLS", remember)
    monkeypatch.setattr("twisted.internet.endpoints.wrapClientTLS", lambda creator, endpoint: creator)
    assert current("amqp://broker.example", broker_use_ssl=settings).endpoint == "options"
    return asked


def test_tls_verifies_by_default(monkeypatch):
    """``broker_use_ssl=True`` verifies the certificate, by the system's authorities, and the host name."""
    asked = options(True, monkeypatch)
    assert asked == {"hostname": "broker.example", "trustRoot": None, "clientCertificate": None}


def test_tls_settings(certificate, monkeypatch):
    """Names of one's own authorities, certificate and server are passed on."""
    certificate_file, key_file = certificate
    asked = options(
        {
            "ca_certs": str(certificate_file),
            "certfile": str(certificate_file),
            "keyfile": str(key_file),
            "server_hostname": "other.example",
            "cert_reqs": ssl.CERT_REQUIRED,
        },
        monkeypatch,
    )
    assert asked["hostname"] == "other.example"
    own = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    assert asked["clientCertificate"].original.to_cryptography() == own
    assert asked["trustRoot"] is not None


def test_a_bundle_of_authorities(certificate, tmp_path, monkeypatch):
    """Every certificate of ``ca_certs`` is trusted."""
    trusted: list[Any] = []
    monkeypatch.setattr("twistedcelery.transports.tls.trustRootFromCertificates", trusted.extend)
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("a comment\n" + certificate[0].read_text() * 3)
    options({"ca_certs": str(bundle)}, monkeypatch)
    assert len(trusted) == 3


def test_one_file_for_certificate_and_key(certificate, tmp_path, monkeypatch):
    """``certfile`` alone may hold both."""
    both = tmp_path / "both.pem"
    both.write_bytes(certificate[0].read_bytes() + certificate[1].read_bytes())
    assert options({"certfile": str(both)}, monkeypatch)["clientCertificate"] is not None


@pytest.mark.parametrize("own", [False, True])
def test_tls_without_verification(certificate, own):
    """``CERT_NONE`` verifies nothing, with or without a certificate of one's own."""
    settings: dict[str, Any] = {"cert_reqs": ssl.CERT_NONE}
    if own:
        settings.update(certfile=str(certificate[0]), keyfile=str(certificate[1]))
    broker = current("amqp://broker.example", broker_use_ssl=settings)
    assert broker.address.startswith("amqps://")
    assert broker.endpoint._wrapperFactory is not None


@pytest.mark.parametrize("name", ["ca_certs", "certfile"])
@pytest.mark.parametrize("content", [None, b"", b"no PEM at all", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_that_cannot_be_used(tmp_path, name, content):
    """A file that is missing, or of another kind, is a `ConfigurationError`; nothing is left unverified."""
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="broker_use_ssl"):
        current("amqp://broker.example", broker_use_ssl={name: str(path)})


def test_a_certificate_that_is_broken(tmp_path):
    """So is a certificate with the marks of one and nothing between."""
    path = tmp_path / "file.pem"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        current("amqp://broker.example", broker_use_ssl={"ca_certs": str(path)})


def test_a_key_that_is_missing(certificate):
    """A certificate without its key cannot be used."""
    with pytest.raises(ConfigurationError, match="cannot be used"):
        current("amqp://broker.example", broker_use_ssl={"certfile": str(certificate[0])})


def test_a_setting_that_nobody_knows():
    """The error names the key and what is accepted."""
    with pytest.raises(ConfigurationError, match=r"ca_cert;.*ca_certs"):
        current("amqp://broker.example", broker_use_ssl={"ca_cert": "file.pem"})
