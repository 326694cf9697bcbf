"""A kombu producer that keeps its messages instead of sending them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import celery.exceptions
import kombu.exceptions
from celery.utils.time import maybe_iso8601
from kombu.messaging import Producer

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import EncodeError, InvalidCall, QueueNotFound, TwistedCeleryError

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["Recorder", "translated"]


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Celery's refusals as errors of this package.

    :param what: was to be encoded
    """
    try:
        yield
    except TwistedCeleryError:
        raise
    except kombu.exceptions.EncodeError as error:
        raise EncodeError(f"{what}: the arguments cannot be serialised: {error}") from error
    except celery.exceptions.QueueNotFound as error:
        raise QueueNotFound(
            f"{what}: {error.args[0]}; task_create_missing_queues is off, so that none is made"
        ) from error
    except Exception as error:
        raise InvalidCall(f"{what}: {error}") from error


class Recorder(Producer):
    """A kombu producer that keeps its messages."""

    def __init__(self, connection: Connection) -> None:
        self._declare: tuple[Any, ...] = ()
        self._recorded: list[_Recorded] = []
        super().__init__(_RecordingChannel(connection, self._record), auto_declare=False)  # type: ignore[no-untyped-call]  # as all of kombu

    @contextmanager
    def recording(self) -> Iterator[list[_Recorded]]:
        """Keep what is published in the list given, and nowhere else.

        Not what an earlier call published before it failed, and not what the handler of one of
        Celery's signals sends meanwhile: that has a recording of its own.
        """
        outer, self._recorded = self._recorded, []
        try:
            yield self._recorded
        finally:
            self._recorded = outer

    def publish(
        self,
        body: Any,
        *args: Any,
        declare: Sequence[Any] | None = None,
        retry: bool = False,
        retry_policy: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        # Declaring and retrying are the transport's work: it has the connection.
        self._declare = tuple(declare or ())
        super().publish(body, *args, **options)  # type: ignore[no-untyped-call]  # as all of kombu

    def _record(
        self, message: _Prepared, exchange: str, routing_key: str, confirm_timeout: float | None
    ) -> None:
        eta = message.headers.get("eta")
        if isinstance(eta, str) and "task" in message.headers:
            # Workers drop a task whose ETA they cannot read, without a reply.
            maybe_iso8601(eta)
        self._recorded.append(_Recorded(message, exchange, routing_key, self._declare, confirm_timeout))


class _Recorded(NamedTuple):
    """A message and where it was sent. A tuple, as `_Prepared` is: made for each call, these cost a
    third of a frozen dataclass.
    """

    message: _Prepared
    exchange: str
    routing_key: str
    declare: tuple[Any, ...]
    confirm_timeout: float | None

    def outgoing(self, *, mandatory: bool = False, resend: bool = False) -> OutgoingMessage:
        return OutgoingMessage(
            body=self.message.body,
            properties=self.message.properties,
            headers=self.message.headers,
            exchange=self.exchange,
            routing_key=self.routing_key,
            declare=self.declare,
            mandatory=mandatory,
            resend=resend,
            confirm_timeout=self.confirm_timeout,
        )


class _Prepared(NamedTuple):
    body: bytes
    properties: dict[str, Any]
    headers: dict[str, Any]


class _RecordingChannel:
    """As much of kombu's channel interface as ``kombu.Producer.publish`` uses."""

    def __init__(self, connection: Connection, record: Any) -> None:
        self.connection = _ChannelConnection(connection)
        self._record = record

    def prepare_message(
        self,
        body: bytes | str,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
    ) -> _Prepared:
        return _Prepared(
            body.encode("utf-8") if isinstance(body, str) else bytes(body),
            {
                "content_type": content_type,
                "content_encoding": content_encoding,
                "priority": priority,
                **(properties or {}),
            },
            headers or {},
        )

    def basic_publish(
        self,
        message: _Prepared,
        exchange: str = "",
        routing_key: str = "",
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        **_flags: Any,
    ) -> None:
        self._record(message, exchange, routing_key, confirm_timeout or timeout)


class _ChannelConnection:
    """kombu finds its ``Connection`` as ``channel.connection.client``."""

    def __init__(self, client: Connection) -> None:
        self.client = client
