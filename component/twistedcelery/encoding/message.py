"""What the encoder gives to a transport: messages, and calls of the result backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery.result import EagerResult

__all__ = ["Encoded", "Form", "OutgoingMessage", "Preparation"]


class Form:
    """What several messages have in common: everything but their body, their task's id as
    ``correlation_id``, and some of their headers.

    :param varying: the headers that differ, all of them text
    :ivar encoded: what a transport has made of the rest, for the messages that follow
    """

    __slots__ = ("encoded", "varying")

    def __init__(self, varying: tuple[str, ...]) -> None:
        self.varying = varying
        self.encoded: Any = None


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One serialised message with its address.

    :ivar body: the payload, as Celery's and kombu's own code serialised it
    :ivar properties: the AMQP 0-9-1 basic properties under kombu's names (``content_type``,
        ``content_encoding``, ``delivery_mode``, ``priority``, ``correlation_id``, ``reply_to``,
        ``expiration`` in milliseconds as text, ...), without headers
    :ivar headers: the AMQP headers table
    :ivar exchange: the name of the exchange; ``""`` is the default exchange
    :ivar declare: kombu entities (``Queue``, ``Exchange``) that must exist before the message is sent
    :ivar mandatory: whether a message that reaches no queue is an error
    :ivar resend: whether the caller allowed the same message to be sent again when its
        confirmation is lost
    :ivar confirm_timeout: seconds for the broker to take the message; ``None`` is the client's default
    :ivar form: of a message that is like others
    """

    body: bytes
    properties: Mapping[str, Any]
    headers: Mapping[str, Any]
    exchange: str
    routing_key: str
    declare: tuple[Any, ...] = ()
    mandatory: bool = False
    resend: bool = False
    confirm_timeout: float | None = None
    form: Form | None = field(default=None, compare=False, repr=False)

    @property
    def body_for_kombu(self) -> bytes | str:
        """The body as kombu's serialisers leave it, which virtual transports put into JSON: text as
        ``str``, where it is not compressed.
        """
        encoding = self.properties.get("content_encoding") or ""
        if encoding.lower() not in ("utf-8", "utf8") or "compression" in self.headers:
            return self.body
        try:
            return self.body.decode("utf-8")
        except UnicodeDecodeError:
            return self.body

    @property
    def task_id(self) -> str | None:
        """The task this message asks for; ``None`` for control and event messages."""
        task_id: str | None = self.properties.get("correlation_id")
        return task_id


@dataclass(frozen=True, slots=True)
class Preparation:
    """A method of the result backend that has to be called before a chord is sent.

    :ivar method: ``"set_chord_size"`` or ``"apply_chord"`` of Celery's backends
    :ivar args: its arguments. Results among them do no I/O.
    """

    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


class Encoded(NamedTuple):
    """A call or a canvas, ready to be published.

    A tuple, since one is made for each call: it costs a third of a frozen dataclass.

    :ivar messages: in the order in which they are to be published; events have no task id
    :ivar preparations: what the result backend has to know before that
    :ivar result: what Celery's ``apply_async`` returned; ``None`` for a task that was sent by name
    :ivar ignored: the ids of tasks with an ignored result, which no worker sends or stores
    """

    messages: Sequence[OutgoingMessage]
    preparations: Sequence[Preparation] = ()
    result: Any = None
    ignored: frozenset[str] = frozenset()

    @property
    def sends_nothing(self) -> bool:
        """Whether a task's own ``apply_async`` gave the result of a task that was sent before."""
        return not self.messages and self.result is not None and not isinstance(self.result, EagerResult)
