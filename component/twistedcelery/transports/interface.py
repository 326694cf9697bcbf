"""The two small interfaces between the client and whatever carries its messages.

A transport has two halves, since Celery configures them apart: a `Publisher` takes messages to
the broker, a `ResultSource` brings states and results back. Every method is called on the
reactor's thread, and every callback is made there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from twistedcelery.errors import ResultError
from twistedcelery.message import OutgoingMessage

__all__ = ["Publisher", "ReplyReceiver", "ResultSource"]


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


#: What a transport calls to build its result half: it is given the receiver first.
ResultSourceFactory = Callable[[ReplyReceiver], ResultSource]
