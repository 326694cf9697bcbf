"""URLs, TLS, sockets and passwords, as kombu and Celery read them."""

from __future__ import annotations

import ssl
from urllib.parse import quote

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

import twistedcelery
from tests.support.certificates import Certificate, make_authority
from tests.support.ports import free_port

# Twisted gives pyOpenSSL a client's certificate and key as pyOpenSSL's own objects.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Passing pyOpenSSL .* objects is deprecated:DeprecationWarning"
)

SECRET = "päss/wörd:@?"


@pytest_twisted.ensureDeferred
async def test_users_and_passwords(redis_with, worker, connect):
    """A password of its own, and a user with a password, from URLs and from settings."""
    server = await deferToThread(redis_with, requirepass=SECRET)
    broker = f"redis://:{quote(SECRET, safe='')}@127.0.0.1:{server.port}/0"
    backend = f"redis://127.0.0.1:{server.port}/1"
    settings = {"redis_password": SECRET, "redis_username": "default"}
    await deferToThread(worker, broker, backend, config=settings)
    tx_app = connect(broker.replace("//:", "//default:"), backend, **settings)
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest_twisted.ensureDeferred
async def test_a_unix_socket(redis_with, worker, connect, tmp_path):
    """``redis+socket://`` for both, with a database each."""
    path = tmp_path / "redis.sock"
    await deferToThread(redis_with, unixsocket=path)
    urls = f"redis+socket://{path}?virtual_host=2", f"redis+socket://{path}?virtual_host=3"
    await deferToThread(worker, *urls)
    assert await connect(*urls).send_task("taskapp.add", args=(1, 2)) == 3


@pytest_twisted.ensureDeferred
async def test_a_failover_list(redis_server, worker, connect):
    """Of ``a;b`` the one that is there is used."""
    down = f"redis://127.0.0.1:{free_port()}/0"
    backend = redis_server.url(1)
    await deferToThread(worker, redis_server.url(0), backend)
    tx_app = connect(f"{down};{redis_server.url(0)}", backend)
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest.fixture
def tls(redis_with, tmp_path):
    """A Redis that speaks TLS, and wants a certificate of its clients; an authority for all."""
    authority = make_authority(tmp_path)
    served = Certificate(tmp_path, "server", issuer=authority)
    port = free_port()
    server = redis_with(
        tls_port=port,
        tls_cert_file=served.file,
        tls_key_file=served.key_file,
        tls_ca_cert_file=authority.file,
    )
    server.tls_port = port
    server.authority = authority
    server.client = Certificate(tmp_path, "client", issuer=authority)
    return server


@pytest_twisted.ensureDeferred
async def test_tls(tls, worker, connect):
    """``rediss://`` with its parameters in the URL, and settings beside a plain URL."""
    files = {
        "ssl_ca_certs": str(tls.authority.file),
        "ssl_certfile": str(tls.client.file),
        "ssl_keyfile": str(tls.client.key_file),
    }
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in files.items())
    urls = [f"rediss://127.0.0.1:{tls.tls_port}/{db}?ssl_cert_reqs=required&{query}" for db in (0, 1)]
    await deferToThread(worker, tls.url(0), tls.url(1))
    tx_app = connect(*urls)
    call = tx_app.send_task("taskapp.add", args=(1, 2))
    assert await call == 3
    # Over the connections that are made when they are used.
    assert await tx_app.result(call.task_id).state == "SUCCESS"
    assert await tx_app.control.ping(limit=1, timeout=10)
    await tx_app.events({}).ready
    settings = {**files, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    plain = [f"redis://127.0.0.1:{tls.tls_port}/{db}" for db in (0, 1)]
    tx_app = connect(*plain, broker_use_ssl=settings, redis_backend_use_ssl=settings)
    assert await tx_app.send_task("taskapp.add", args=(2, 2)) == 4


@pytest.mark.parametrize("wrong", ["authority", "name", "file"])
@pytest_twisted.ensureDeferred
async def test_tls_that_cannot_be_trusted(tls, connect, tmp_path, wrong):
    """Another authority, a certificate for another host, a file that is not there: nothing is sent."""
    host = "localhost" if wrong == "name" else "127.0.0.1"
    (tmp_path / "other").mkdir()
    authority = {
        "authority": make_authority(tmp_path / "other").file,
        "name": tls.authority.file,
        "file": tmp_path / "nowhere.pem",
    }[wrong]
    settings = {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_ca_certs": str(authority),
        "ssl_certfile": str(tls.client.file),
        "ssl_keyfile": str(tls.client.key_file),
    }
    tx_app = connect(
        f"redis://{host}:{tls.tls_port}/0",
        tls.url(1),
        broker_use_ssl=settings,
        options={"publish_timeout": 1},
    )
    expected = {"authority": "certificate verify failed", "name": "VerificationError", "file": "nowhere"}
    with pytest.raises(twistedcelery.BrokerUnavailable, match=expected[wrong]):
        await tx_app.send_task("taskapp.add", args=(1, 2))


@pytest_twisted.ensureDeferred
async def test_tls_that_need_not_be_trusted(tls, worker, connect):
    """Without ``ssl_cert_reqs`` anything goes; without ``ssl_check_hostname`` any host's certificate does."""
    client = {"ssl_certfile": str(tls.client.file), "ssl_keyfile": str(tls.client.key_file)}
    broker = {**client, "ssl_cert_reqs": ssl.CERT_NONE}
    backend = {
        **client,
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_ca_certs": str(tls.authority.file),
        "ssl_check_hostname": False,
    }
    await deferToThread(worker, tls.url(0), tls.url(1))
    tx_app = connect(
        f"redis://localhost:{tls.tls_port}/0",
        f"redis://localhost:{tls.tls_port}/1",
        broker_use_ssl=broker,
        redis_backend_use_ssl=backend,
    )
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
