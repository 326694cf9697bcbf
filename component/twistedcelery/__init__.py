"""Celery for Twisted: send tasks, get Deferreds, never block the reactor.

::

    tx_app = TwistedCelery(app)
    result = yield tx_app.send_task("my_app.tasks.add", args=(2, 3))
    tx_app.disconnect()

`twistedcelery.wamp` exposes the same tasks on a WAMP router.
"""

from __future__ import annotations

from twistedcelery.calls.call import GroupDeferred, TaskDeferred
from twistedcelery.calls.task import TwistedTask
from twistedcelery.client import TwistedCelery
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    CallCancelled,
    CallRefused,
    ConfigurationError,
    Disconnected,
    EncodeError,
    InvalidCall,
    NoResultBackend,
    Overloaded,
    PublishError,
    PublishRejected,
    PublishUnconfirmed,
    QueueNotFound,
    RepliesLost,
    ReplyNotAccepted,
    ReplyTooLarge,
    ReplyUndecodable,
    ResultBackendUnavailable,
    ResultError,
    ResultLost,
    TaskFailure,
    TwistedCeleryError,
    Unroutable,
    UnsupportedByBackend,
)
from twistedcelery.results.result import GroupResult, TaskResult
from twistedcelery.workers.control import Control, Inspect
from twistedcelery.workers.events import EventStream

__all__ = [
    "BrokerAccessRefused",
    "BrokerUnavailable",
    "CallCancelled",
    "CallRefused",
    "ConfigurationError",
    "Control",
    "Disconnected",
    "EncodeError",
    "EventStream",
    "GroupDeferred",
    "GroupResult",
    "Inspect",
    "InvalidCall",
    "NoResultBackend",
    "Overloaded",
    "PublishError",
    "PublishRejected",
    "PublishUnconfirmed",
    "QueueNotFound",
    "RepliesLost",
    "ReplyNotAccepted",
    "ReplyTooLarge",
    "ReplyUndecodable",
    "ResultBackendUnavailable",
    "ResultError",
    "ResultLost",
    "TaskDeferred",
    "TaskFailure",
    "TaskResult",
    "TwistedCelery",
    "TwistedCeleryError",
    "TwistedTask",
    "Unroutable",
    "UnsupportedByBackend",
]
