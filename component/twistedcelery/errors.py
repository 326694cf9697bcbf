"""Every error that twistedcelery raises, in one tree.

::

    TwistedCeleryError
    ├── ConfigurationError            the Celery application or the bridge is set up wrong
    │   ├── NoResultBackend           the application has nowhere to put results
    │   └── UnsupportedByBackend      the result backend cannot do that: chords over ``rpc://``
    ├── PublishError                  the task did not (certainly) reach the broker
    │   ├── InvalidCall               the arguments or options are not what Celery takes
    │   │   ├── CallRefused           the task's own ``apply_async`` refused the call
    │   │   └── QueueNotFound         the queue is not configured, and none may be made
    │   ├── EncodeError               the arguments cannot be serialised
    │   ├── BrokerUnavailable         no broker that takes messages in time; nothing was sent
    │   │   └── BrokerAccessRefused   the broker refused the credentials or the virtual host
    │   ├── Unroutable                the broker has no queue for the task
    │   ├── PublishRejected           the broker refused the message
    │   ├── PublishUnconfirmed        sent, but the broker's confirmation never came
    │   └── Overloaded                too many messages wait for the broker
    ├── ResultError                   the task was sent; its result could not be had
    │   ├── ReplyNotAccepted          the reply's content type is not in ``result_accept_content``
    │   ├── ReplyUndecodable          the reply is not what Celery sends
    │   ├── TaskFailure               the task failed, and what is stored for it is no exception
    │   ├── ReplyTooLarge             the reply has more bytes than max_reply_bytes
    │   ├── ResultBackendUnavailable  the result backend did not answer in time
    │   ├── ResultLost                no worker has the task any more, and its queue is empty
    │   └── RepliesLost               the connection went before workers' replies had come
    ├── CallCancelled                 the caller cancelled; the task is revoked
    └── Disconnected                  ``disconnect()`` was called before the result came

What a *task* raises is not in this tree: a call fails with the exception that
``celery.result.AsyncResult.get()`` would have raised. `TaskFailure` is for a failure that a worker
stored without an exception, which Celery's own client cannot read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import celery.exceptions
import kombu.exceptions
from twisted.internet import defer

__all__ = [
    "BrokerAccessRefused",
    "BrokerUnavailable",
    "CallCancelled",
    "CallRefused",
    "ConfigurationError",
    "Disconnected",
    "EncodeError",
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
    "TaskFailure",
    "TwistedCeleryError",
    "Unroutable",
    "UnsupportedByBackend",
]

E = TypeVar("E", bound=BaseException)


class TwistedCeleryError(Exception):
    """The root of all errors of this package."""


class ConfigurationError(TwistedCeleryError, celery.exceptions.ImproperlyConfigured):
    """The Celery application, or the bridge's configuration, cannot work as it is."""


class NoResultBackend(ConfigurationError, NotImplementedError):
    """The application has no result backend: the task was sent, its result cannot be had.

    Set ``result_backend``, or pass ``ignore_result=True`` to send without waiting.
    """


class UnsupportedByBackend(ConfigurationError, NotImplementedError):
    """The result backend cannot do that, with Celery's own client either. Nothing was sent."""


class PublishError(TwistedCeleryError):
    """The task did not reach the broker, or it is not known whether it did."""


class InvalidCall(PublishError, TypeError, ValueError):
    """The arguments or options are not what Celery's own ``send_task`` takes. Nothing was sent."""


class CallRefused(InvalidCall):
    """The task's class has an ``apply_async`` of its own, which raised. Nothing was sent.

    What it raised is the cause of this error.
    """


class QueueNotFound(InvalidCall, celery.exceptions.QueueNotFound):
    """``task_queues`` lacks the queue, and ``task_create_missing_queues`` is off. Nothing was sent."""

    # A KeyError's is the repr of its message.
    __str__ = Exception.__str__


class EncodeError(PublishError, kombu.exceptions.EncodeError):
    """The task's arguments cannot be serialised. Nothing was sent."""


class BrokerUnavailable(PublishError, kombu.exceptions.OperationalError):
    """There was no broker that takes messages within the time allowed. Nothing was sent."""


class BrokerAccessRefused(BrokerUnavailable):
    """The broker refused the user name, the password or the virtual host. Nothing was sent."""


class Unroutable(PublishError):
    """The broker took the message and found no queue for it. No worker will see the task."""


class PublishRejected(PublishError):
    """The broker refused the message, or what had to be declared for it. The task will not run."""


class PublishUnconfirmed(PublishError):
    """The message was sent, and its confirmation did not come, nor a state of its task in that time.

    The broker may or may not have the task. It is sent again only for a caller who passed
    ``retry=True``, and then under the same task id.
    """


class Overloaded(PublishError):
    """Too many messages already wait for the broker. Nothing was sent; try again later."""


class ResultError(TwistedCeleryError):
    """The task was sent; its result could not be had."""


class ReplyNotAccepted(ResultError, kombu.exceptions.ContentDisallowed):
    """The reply has a content type that ``result_accept_content`` does not list."""


class ReplyUndecodable(ResultError):
    """The reply is not a result as Celery's workers send it."""


class TaskFailure(ResultError):
    """The task failed, and what its worker stored is no exception.

    Each attribute but `stored` is what the worker stored, or else this error's own.

    :param stored: what the worker stored
    """

    def __init__(self, message: str = "", stored: Any = None) -> None:
        super().__init__(message)
        self.stored = stored
        details = stored if isinstance(stored, Mapping) else {}
        self.exc_type = _text(details.get("exc_type")) or type(self).__name__
        self.exc_module = _text(details.get("exc_module")) or type(self).__module__
        self.exc_message = _text(details.get("exc_message")) or message


class ReplyTooLarge(ResultError):
    """The reply has more bytes than ``max_reply_bytes`` allows, as it came or decompressed."""


class ResultBackendUnavailable(ResultError):
    """The result backend did not answer in the time allowed."""


class ResultLost(ResultError):
    """No worker has the task any more, its queue is empty, and there is no result.

    For example, the worker that ran it was killed. The task may have run in part.
    """


class RepliesLost(ResultError):
    """The control command was sent; the connection was lost before the replies had come."""


class CallCancelled(TwistedCeleryError, defer.CancelledError):
    """The caller cancelled the call. The task is revoked; what it returns is not waited for."""


class Disconnected(TwistedCeleryError):
    """The client was disconnected before the call ended. The task itself may still run."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a wrong name: the one that was meant, or nothing where none is close."""
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def renewed(error: E) -> E:
    """Make the same error for another caller: each raised exception keeps its own traceback."""
    again = type(error)(*error.args)
    again.__cause__ = error.__cause__
    return again


def _text(value: Any) -> str | None:
    """A stored text, which Celery stores as a list of arguments; ``None`` for anything else."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else None
