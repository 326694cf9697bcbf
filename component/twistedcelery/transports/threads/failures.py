"""Translates what kombu, Celery and their drivers raise into errors of this package.

No other module of the threaded transport knows the classes of foreign exceptions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import quote, unquote

import amqp.exceptions
import kombu.exceptions

from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    EncodeError,
    PublishError,
    PublishRejected,
    PublishUnconfirmed,
    ReplyNotAccepted,
    ReplyUndecodable,
    ResultError,
)
from twistedcelery.transports.connection import caused, is_limit

__all__ = [
    "Redactor",
    "connect_error",
    "declare_error",
    "is_refusal",
    "never_connected",
    "reply_error",
    "send_error",
]

#: Passwords shorter than this are taken out of URLs alone: they would also hit innocent words.
_LEAST_SECRET = 4


class ErrorClasses(Protocol):
    """Knows what a broker's driver raises."""

    @property
    def channel_errors(self) -> tuple[type[Exception], ...]:
        """For something that the broker refuses."""

    @property
    def connection_errors(self) -> tuple[type[Exception], ...]:
        """For a connection that failed."""


#: Classes that drivers raise for refused credentials, by name: the drivers are optional.
_REFUSALS = frozenset({"AccessRefused", "NotAllowed", "AuthenticationError", "AuthorizationError"})


class Redactor:
    """Takes the application's passwords out of texts that users and logs see.

    :param app: the Celery application whose settings name brokers and result backends
    """

    def __init__(self, app: Any) -> None:
        conf = app.conf
        urls = [conf.broker_url, conf.broker_read_url, conf.broker_write_url, conf.result_backend]
        secrets = {conf.broker_password, conf.get("redis_password")}
        for url in urls:
            for one in [url] if isinstance(url, str) else (url or []):
                secrets.update(_passwords(str(one)))
        secrets.update({quote(s, safe=safe) for s in secrets if isinstance(s, str) for safe in ("", ":")})
        # The longest first, so that no part of one is left when another is contained in it.
        self._secrets = sorted((s for s in secrets if isinstance(s, str) and s), key=len, reverse=True)

    def text(self, error: BaseException) -> str:
        """An exception as text without passwords, starting with the name of its class."""
        return self.redact(f"{type(error).__name__}: {error}")

    def redact(self, text: str) -> str:
        """A text without passwords."""
        for secret in self._secrets:
            text = text.replace(f":{secret}@", ":**@")
            if len(secret) >= _LEAST_SECRET:
                text = text.replace(secret, "**")
        return text

    def cause(self, error: BaseException) -> BaseException:
        """The exception as a cause, or a stand-in where its text holds a password."""
        return error if self.redact(str(error)) == str(error) else RuntimeError(self.text(error))


def _passwords(url: str) -> Iterator[str]:
    for part in url.split(";"):
        _, _, rest = part.partition("://")
        userinfo, at, _ = rest.rpartition("@")
        _, colon, password = userinfo.partition(":")
        if at and colon:
            yield password
            yield unquote(password)


def is_refusal(error: BaseException) -> bool:
    """Whether a server answered, and refused the credentials or the virtual host."""
    if is_limit(str(error)):
        # The class is ``NotAllowed``, too.
        return False
    return any(cls.__name__ in _REFUSALS for cls in type(error).__mro__)


def never_connected(error: BaseException) -> bool:
    """Whether an error of a sending call came from connecting first, so that nothing was sent.

    Drivers such as redis-py connect when the first command is given, and again when they find
    the connection gone.
    """
    chain: BaseException | None = error
    refused = False
    while chain is not None:
        if isinstance(chain, (ConnectionResetError, BrokenPipeError, EOFError)):
            return False
        refused = refused or isinstance(chain, (ConnectionRefusedError, FileNotFoundError))
        chain = chain.__cause__ or chain.__context__
    return refused


def connect_error(error: BaseException, redactor: Redactor) -> PublishError:
    """The error for a message that was not sent since there was no connection."""
    made: PublishError
    text = redactor.text(error)
    if is_refusal(error):
        made = BrokerAccessRefused(
            f"the broker refused the user name, the password or the virtual host: {text}"
        )
    else:
        made = BrokerUnavailable(f"the broker cannot be reached: {text}")
    return caused(made, redactor.cause(error))


def declare_error(error: BaseException, broker: ErrorClasses, redactor: Redactor) -> PublishError:
    """The error for a message whose queue or exchange could not be declared. It was not sent."""
    if is_refusal(error) or isinstance(error, broker.channel_errors):
        made = PublishRejected(f"the broker refused a declaration: {redactor.text(error)}")
        return caused(made, redactor.cause(error))
    return connect_error(error, redactor)


def send_error(error: BaseException, broker: ErrorClasses, redactor: Redactor) -> PublishError:
    """The error for a message that may have been sent when something failed."""
    text = redactor.text(error)
    made: PublishError
    if is_refusal(error) or isinstance(error, (amqp.exceptions.MessageNacked, *broker.channel_errors)):
        made = PublishRejected(f"the broker refused the message: {text}")
    elif isinstance(error, broker.connection_errors):
        made = PublishUnconfirmed(f"the connection failed before the broker confirmed the message: {text}")
    elif isinstance(error, (TypeError, ValueError, struct.error, kombu.exceptions.SerializationError)):
        made = EncodeError(f"the message cannot be put on the wire: {text}")
    else:
        made = PublishUnconfirmed(f"sending failed at an unknown point: {text}")
    return caused(made, redactor.cause(error))


def reply_error(error: BaseException, redactor: Redactor) -> ResultError:
    """The error for a stored result or a reply that cannot be turned into a result meta."""
    text = redactor.text(error)
    made: ResultError
    if isinstance(error, kombu.exceptions.ContentDisallowed):
        made = ReplyNotAccepted(f"result_accept_content does not list the result's content type: {text}")
    else:
        made = ReplyUndecodable(f"not a result as Celery stores it: {text}")
    return caused(made, redactor.cause(error))
