"""Encodes task calls and control commands, by Celery's and kombu's own code.

``Celery.send_task`` accepts a producer. The one given here is a kombu ``Producer`` on a channel
that keeps the finished message instead of sending it, so routing, execution options, ETA,
expiry, stamps, signals, serialisation, compression and signing are those of the installed Celery.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import celery.exceptions
import kombu.exceptions
from amqp import Message
from celery.app.amqp import AMQP
from celery.utils.time import maybe_iso8601
from kombu.messaging import Producer

from twistedcelery.encoding.app_view import view_of
from twistedcelery.encoding.message import Encoded, OutgoingMessage
from twistedcelery.encoding.templates import Templates
from twistedcelery.errors import (
    CallRefused,
    EncodeError,
    InvalidCall,
    QueueNotFound,
    TwistedCeleryError,
    did_you_mean,
)

if TYPE_CHECKING:
    from celery import Celery
    from kombu.connection import Connection

__all__ = ["Encoder", "Recorder", "allowed_options", "translated"]

#: Options of ``send_task`` that would take the message past this client.
_BLOCKING_OPTIONS = ("connection", "producer", "publisher")

_NOTHING: frozenset[str] = frozenset()

#: What may stand among a message's properties: those of AMQP 0-9-1, and options that Celery puts into a
#: message's body or headers, or keeps for a chord, and leaves among the properties as well.
_OPTIONS = {name for name, _ in Message.PROPERTIES if name != "application_headers"}.union(
    *(inspect.signature(make).parameters for make in (AMQP.as_task_v1, AMQP.as_task_v2)),
    ("interval", "max_retries"),
)


class Encoder:
    """Turns calls into messages, with no I/O.

    :param app: the configured Celery application
    :param reply_to: the queue that workers reply to; ``None``: whatever Celery chooses
    :ivar recorder: keeps what is published through it
    """

    def __init__(self, app: Celery, reply_to: str | None = None) -> None:
        self._view = view_of(app, reply_to)
        self._templates = Templates(app, self._view)
        # Never connected: Celery asks it for the transport's name and its exception classes.
        self._connection = app.connection_for_write()
        self.recorder = Recorder(self._connection)
        self._control = copy(app.control)
        self._control.mailbox = copy(app.control.mailbox)
        # The cached attribute itself: an application that has used its control keeps its pool there.
        self._control.mailbox.producer_pool = _PoolOfOne(self.recorder)
        self._option_names = [
            name
            for name, parameter in inspect.signature(type(app).send_task).parameters.items()
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ][4:]

    def is_observed(self) -> bool:
        """As `twistedcelery.encoding.templates.Templates.is_observed`."""
        return self._templates.is_observed()

    def options(self, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """Name the options that were passed by position, as the installed Celery orders them.

        :param positional: what followed ``name, args, kwargs`` in the call
        :raises InvalidCall: for more positions than Celery has, an option given twice, or an
            option that names another way to the broker
        """
        options = dict(named)
        if len(positional) > len(self._option_names):
            raise InvalidCall(
                f"send_task() takes at most {len(self._option_names) + 3} positional arguments, "
                f"{len(positional) + 3} were given"
            )
        for name, value in zip(self._option_names, positional, strict=False):
            if name in options:
                raise InvalidCall(f"send_task() got multiple values for argument {name!r}")
            options[name] = value
        return allowed_options(options, "send_task")

    def task(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        task_id: str,
        options: Mapping[str, Any],
    ) -> Encoded:
        """Encode a task call.

        :param options: from `options`
        :raises EncodeError: the arguments cannot be serialised
        :raises InvalidCall: Celery refuses the arguments or the options
        """
        kind = self._templates.kind(name, args, kwargs, options)
        if kind is not None and (learned := self._templates.find(kind)):
            try:
                messages = [learned.fill(task_id, args, kwargs)]
            except Exception:  # noqa: S110  # Celery, below, says what is wrong with the arguments
                pass
            else:
                return Encoded(messages, ignored=frozenset((task_id,)) if learned.ignored else _NOTHING)
        recorder = self.recorder
        with recorder.recording() as recorded, translated(f"task {name!r}"):
            sent = self._view.send_task(
                name, args, kwargs, task_id=task_id, producer=recorder, result_cls=_Sent, **options
            )
            message, *events = recorded
        messages = [message.outgoing(mandatory=True, resend=options.get("retry") is True)]
        ignored = self._is_ignored(name, sent)
        if events:
            messages.extend(event.outgoing() for event in events)
        elif kind is not None:
            self._templates.learn(kind, messages[0], args, kwargs, ignored=ignored)
        return Encoded(messages, ignored=frozenset((task_id,)) if ignored else _NOTHING)

    def _is_ignored(self, name: str, sent: _Sent) -> bool:
        if sent.ignored is not None:
            return bool(sent.ignored)
        # A worker sends no reply for a task with ``ignore_result=True``; waiting would never end.
        # The plain registry, as in Celery's send_task: looking here must not finalize the application.
        registry = self._view._tasks  # noqa: SLF001  # see above
        return bool(getattr(registry.get(name), "ignore_result", False))

    def broadcast(self, mailbox: Any, **arguments: Any) -> OutgoingMessage:
        """Encode a control command.

        :param mailbox: a kombu ``Mailbox`` of the caller's own, which publishes here from now on
        :param arguments: those of ``Mailbox._broadcast``
        :raises EncodeError: the command's arguments cannot be serialised
        :raises InvalidCall: kombu refuses the arguments
        """
        mailbox.producer_pool = _PoolOfOne(self.recorder)
        what = f"control command {arguments.get('command')!r}"
        with self.recorder.recording() as recorded, translated(what):
            mailbox._broadcast(**arguments)  # noqa: SLF001  # Celery calls it as well
            (message,) = recorded
        return message.outgoing()

    def revoke(self, task_ids: Sequence[str], *, terminate: bool, signal: str) -> OutgoingMessage:
        """Encode the broadcast that revokes tasks.

        :param terminate: whether workers kill the process that runs such a task already
        :param signal: the name of the signal that kills it
        """
        with self.recorder.recording() as recorded, translated("revoke"):
            self._control.revoke(
                list(task_ids),
                terminate=terminate,
                signal=signal,
                connection=self._connection,
                channel=self.recorder.channel,
            )
        (message,) = recorded
        return message.outgoing(resend=True)


def allowed_options(options: dict[str, Any], method: str) -> dict[str, Any]:
    """Options without those that have no meaning here.

    :param method: was given them
    :raises InvalidCall: for one that names another way to the broker
    """
    for name in _BLOCKING_OPTIONS:
        if options.pop(name, None) is not None:
            raise InvalidCall(
                f"{method}({name}=...) is for Celery's blocking client; here messages go over the "
                "client's own connection to broker_write_url"
            )
    # The result is the Deferred itself.
    options.pop("result_cls", None)
    return options


class _Sent:
    """What ``send_task`` returns, as small as Celery allows: it is also kept as a child of the
    task that a worker is running, which asks for `as_tuple`.
    """

    __slots__ = ("id", "ignored")

    def __init__(self, task_id: str) -> None:
        self.id = task_id
        self.ignored: bool | None = None

    def as_tuple(self) -> tuple[tuple[str, None], None]:
        return (self.id, None), None


@contextmanager
def translated(what: str, *, own_way: bool = False) -> Iterator[None]:
    """Celery's refusals as errors of this package.

    :param what: was to be encoded
    :param own_way: whether a task's own ``apply_async`` encodes it, which may refuse by any exception
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
        # A TypeError is what Celery raises for arguments that the task does not take.
        if own_way and not isinstance(error, TypeError):
            raise CallRefused(f"{what}: its apply_async raised {type(error).__name__}: {error}") from error
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
        unknown = message.properties.keys() - _OPTIONS
        if unknown:
            name = min(unknown)
            raise InvalidCall(f"there is no option {name!r}{did_you_mean(name, _OPTIONS)}")
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


class _PoolOfOne:
    """A producer pool for kombu's mailbox, which takes its producer from one."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @contextmanager
    def acquire(self) -> Iterator[Recorder]:
        yield self._recorder
