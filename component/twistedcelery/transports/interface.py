"""What a client needs of whatever carries its messages.

A `Transport` makes four parts, each for one client. A `Publisher` takes messages to the broker, a
`ResultSource` brings states and results back, a `Subscriber` consumes further queues (replies to
control commands, events), and a `ResultStore` answers questions about results that a result backend
keeps. Every method is called on the reactor's thread, and every callback is made there.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred

from twistedcelery.encoding.message import OutgoingMessage, Preparation
from twistedcelery.errors import BrokerUnavailable, ResultError, TwistedCeleryError
from twistedcelery.transports.decoding import MAX_REPLY_BYTES

if TYPE_CHECKING:
    from celery import Celery

__all__ = [
    "IncomingMessage",
    "Publisher",
    "QueueState",
    "ReplyReceiver",
    "ResultSource",
    "ResultStore",
    "Setup",
    "Subscriber",
    "Subscription",
    "SubscriptionUser",
    "Transport",
]


@dataclass(frozen=True, slots=True)
class Setup:
    """The client that a transport makes its parts for.

    :ivar app: the configured Celery application, whose settings say where to connect
    :ivar reactor: the reactor to run on
    :ivar timeout: seconds for the broker to take a message, and for an answer to a question,
        connecting included
    :ivar max_reply_bytes: what a reply or a stored state may have, also decompressed
    """

    app: Celery
    reactor: Any
    timeout: float
    max_reply_bytes: int = MAX_REPLY_BYTES


class Transport(ABC):
    """A way to a broker and a result backend: makes the parts that talk to them.

    Subclass it to add a transport. Pass an object of the subclass to
    ``TwistedCelery(app, transport=...)``, or give it URL schemes with
    `twistedcelery.transports.registry.register`.

    A client calls each method at most once. No part connects before it is used.

    :ivar pacing_clock: seconds of real time, by which bursts of calls are spread over reactor turns
    """

    pacing_clock: Callable[[], float] = staticmethod(time.perf_counter)

    @abstractmethod
    def publisher(self, setup: Setup) -> Publisher:
        """Make what takes messages to ``broker_write_url``."""

    @abstractmethod
    def subscriber(self, setup: Setup) -> Subscriber:
        """Make what consumes queues of ``broker_read_url``."""

    @abstractmethod
    def results(self, setup: Setup, receiver: ReplyReceiver) -> ResultSource:
        """Make what brings results from ``result_backend``.

        :param receiver: called with each state
        """

    @abstractmethod
    def store(self, setup: Setup) -> ResultStore | None:
        """Make what answers questions about results; ``None`` where the backend keeps none."""


@dataclass(frozen=True, slots=True)
class IncomingMessage:
    """One message as it came; the fields are AMQP's.

    :ivar body: text where kombu's transports have it as text, else bytes
    """

    body: bytes | str
    content_type: str | None
    content_encoding: str | None
    headers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue that workers consume, as the broker has it.

    :ivar messages: how many wait in it. Where the broker cannot tell which queue an unacknowledged
        message came from, all such messages count.
    :ivar consumers: how many workers consume it now; ``None`` where the broker does not know
    :ivar workers: the names of all workers that the broker knows of, whatever they consume, and whether
        they are still there or not; ``None`` where it knows no names
    """

    messages: int
    consumers: int | None = None
    workers: frozenset[str] | None = None


class Publisher(Protocol):
    """Takes messages to the broker, in the order given."""

    @property
    def connected(self) -> bool:
        """Whether a message published now would go out at once."""

    def publish(self, message: OutgoingMessage) -> Deferred[None]:
        """Send a message; connect first where needed.

        :return: fires with ``None`` once the broker has taken the message, or fails with a
            `twistedcelery.errors.PublishError`, within the message's ``confirm_timeout`` or the
            publisher's default. Cancelling it drops a message that was not sent yet; one that may
            have been sent fails with `twistedcelery.errors.PublishUnconfirmed`.
        """

    def close(self) -> Deferred[None]:
        """Stop. Whatever is unfinished fails with `twistedcelery.errors.Disconnected`.

        :return: fires once nothing is left: no socket, thread or timer. Safe to call twice.
        """


class ReplyReceiver(Protocol):
    """Where a `ResultSource` delivers what it finds."""

    def state_changed(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """A task has a new state.

        :param meta: as Celery stores it, with ``status``, ``result`` (exceptions as Celery's
            own code rebuilds them), ``traceback``, ``children``
        """

    def reply_failed(self, task_id: str, error: ResultError) -> None:
        """Nothing more can be learnt of this task."""

    def resumed(self, replies_lost: bool) -> None:
        """States come again after an interruption.

        :param replies_lost: whether those that came meanwhile are certainly gone
        """


class ResultSource(Protocol):
    """Brings states and results back. Duplicates and late states are allowed."""

    @property
    def connected(self) -> bool:
        """Whether a state stored now would be seen at once."""

    @property
    def available(self) -> bool:
        """Whether results can be had at all; ``False`` where no result backend is configured."""

    @property
    def reply_to(self) -> str | None:
        """The name of the reply queue that task messages carry; ``None``: Celery's own."""

    def watch(self, task_id: str) -> Deferred[None] | None:
        """Begin to report on a task. Called before the task is published.

        :return: ``None`` where nothing needs waiting for, else a Deferred that fires when the
            task may be published without its first state being missed. It may fail with a
            `twistedcelery.errors.TwistedCeleryError`. Cancelled, it fails with one that says what
            it waited for.
        """

    def forget(self, task_id: str) -> None:
        """Stop reporting on a task. Unknown ids are ignored."""

    def close(self) -> Deferred[None]:
        """Stop. Fires once nothing is left: no socket, thread or timer. Safe to call twice."""


class SubscriptionUser(Protocol):
    """The user of a subscription."""

    def consuming(self) -> None:
        """Every message from now on is received. Called again after each interruption."""

    def received(self, message: IncomingMessage) -> None:
        """A message from the queue. Whether to decode it is the user's decision."""

    def interrupted(self, reason: BrokerUnavailable) -> None:
        """The connection was lost, or an attempt to make one failed. Another attempt follows."""

    def ended(self, error: TwistedCeleryError) -> None:
        """Nothing more comes: the broker refused the queue at first, or the subscriber was closed."""


class Subscription(Protocol):
    """A queue that is consumed."""

    def renew(self) -> Deferred[None] | None:
        """Declare the queue again, where the broker may have lost it without closing the link.

        :return: ``None`` where a broker says so, else a Deferred that fires once it is declared. It may fail
            with a `twistedcelery.errors.PublishError`.
        """

    def cancel(self) -> Deferred[None]:
        """Stop consuming, and delete the queue where it is ``auto_delete``. The user is not
        called any more.

        :return: fires once that is done, as far as the broker can be reached. Safe to call twice.
        """


class Subscriber(Protocol):
    """Consumes queues of the client's own, and looks at and purges those of workers."""

    def subscribe(self, queue: Any, user: SubscriptionUser) -> Subscription:
        """Declare a queue and consume it until it is cancelled; connect first where needed.

        After a lost connection the queue is declared anew. What it held may be lost with the
        connection: this is for queues that live as long as their consumer.

        :param queue: a kombu ``Queue`` with its exchange, not bound to a channel
        """

    def purge(self, queues: Sequence[Any]) -> Deferred[int]:
        """Discard all messages of some queues, which are declared first.

        :param queues: kombu ``Queue`` entities
        :return: fires with the number of messages discarded, or fails with a
            `twistedcelery.errors.PublishError`
        """

    def look(self, queue: str) -> Deferred[QueueState | None]:
        """Look at a queue without declaring it. One that does not exist is empty.

        :return: fires with ``None`` where the transport cannot tell, or fails with a
            `twistedcelery.errors.PublishError`
        """

    def close(self) -> Deferred[None]:
        """Stop. Each subscription that is left ends with `twistedcelery.errors.Disconnected`.

        :return: fires once nothing is left: no queue that the broker can still be asked to
            delete, no socket, thread or timer. Safe to call twice.
        """


class ResultStore(Protocol):
    """A result backend that keeps results, and what else Celery puts there.

    What a method returns may fail with a `twistedcelery.errors.TwistedCeleryError`, such as
    `twistedcelery.errors.ResultBackendUnavailable` when there is no answer in time, or with
    ``NotImplementedError`` where the backend cannot do it.
    """

    def task_meta(self, task_id: str) -> Deferred[Mapping[str, Any]]:
        """The state of a task, as in `ReplyReceiver.state_changed`; ``PENDING`` if there is none."""

    def exists(self, task_id: str) -> Deferred[bool]:
        """Whether anything is kept of a task."""

    def forget(self, task_id: str) -> Deferred[None]:
        """Delete the state of a task."""

    def save_group(self, group_id: str, group: tuple[Any, ...]) -> Deferred[None]:
        """Keep a group.

        :param group: as ``celery.result.GroupResult.as_tuple`` gives it
        """

    def restore_group(self, group_id: str) -> Deferred[tuple[Any, ...] | None]:
        """Read a group; ``None`` if there is none."""

    def delete_group(self, group_id: str) -> Deferred[None]:
        """Delete a group."""

    def prepare(self, preparations: Sequence[Preparation]) -> Deferred[None]:
        """Do, in order, what Celery does in the backend before it sends a chord."""

    def close(self) -> Deferred[None]:
        """Stop. Fires once nothing is left: no socket, thread or timer. Safe to call twice."""
