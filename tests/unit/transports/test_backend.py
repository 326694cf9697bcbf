"""Result backends of the client's own, made offline."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.backends.rpc import RPCBackend

from twistedcelery.errors import ConfigurationError
from twistedcelery.transports.decoding import Undecodable
from twistedcelery.transports.threads.backend import OwnBackend


def own(url, **config):
    app = Celery(set_as_current=False, broker="memory://", backend=url)
    app.conf.update(config)
    return app, OwnBackend(app, "the-reply-queue")


@pytest.mark.parametrize("payload", [b'{"oh": "no"}', b'{"status": "SUCC', b"\x80\x04."])
def test_a_broken_value_does_not_look_like_a_lost_connection(payload):
    """Redis' consumer takes an exception from decoding for a failure of the connection: none is raised."""
    backend = own("redis://")[1].make()
    assert isinstance(backend.decode_result(payload), Undecodable)
    assert backend.decode_result(b'{"status": "SUCCESS", "result": 1}') == {"status": "SUCCESS", "result": 1}


def test_the_reply_queue_is_ours_and_outlives_a_connection():
    """``rpc://`` consumes the queue it is told to, and the broker does not delete it with its consumer."""
    backend = own("rpc://")[1].make()
    assert backend.binding.name == "the-reply-queue"
    assert backend.binding.durable
    assert not backend.binding.auto_delete
    assert backend.binding.expires


def test_the_applications_backend_is_left_alone():
    """What is changed in our backend is not changed in the application's, nor in its class."""
    app, made = own("rpc://")
    backend, theirs = made.make(), app.backend
    assert theirs is not backend
    assert theirs.oid == app.thread_oid
    assert theirs.binding.auto_delete
    assert type(theirs.result_consumer) is RPCBackend.ResultConsumer


def test_nothing_is_retried_behind_our_back():
    """Celery's own retries, which may go on for ever, are off: we retry, and report."""
    backend = own("redis://", result_backend_always_retry=True)[1].make()
    assert not backend.always_retry
    assert backend.retry_policy["max_retries"] == 0


def test_a_missing_driver_is_named():
    """The error names the setting, and keeps Celery's words on what is missing."""
    with pytest.raises(ConfigurationError, match=r"result_backend.*nosuch"):
        own("nosuch://")
