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
from typing import TYPE_CHECKING, Any

from twistedcelery.encoding.app_view import view_of
from twistedcelery.encoding.message import Encoded, OutgoingMessage
from twistedcelery.encoding.recorder import Recorder, translated
from twistedcelery.errors import InvalidCall

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Encoder", "allowed_options"]

#: Options of ``send_task`` that would take the message past this client.
_BLOCKING_OPTIONS = ("connection", "producer", "publisher")

_NOTHING: frozenset[str] = frozenset()


class Encoder:
    """Turns calls into messages, with no I/O.

    :param app: the configured Celery application
    :param reply_to: the queue that workers reply to; ``None``: whatever Celery chooses
    :ivar recorder: keeps what is published through it
    """

    def __init__(self, app: Celery, reply_to: str | None = None) -> None:
        self._view = view_of(app, reply_to)
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
        recorder = self.recorder
        with recorder.recording() as recorded, translated(f"task {name!r}"):
            sent = self._view.send_task(
                name, args, kwargs, task_id=task_id, producer=recorder, result_cls=_Sent, **options
            )
            message, *events = recorded
        asks = message.outgoing(mandatory=True, resend=options.get("retry") is True)
        return Encoded(
            (asks, *[event.outgoing() for event in events]),
            ignored=frozenset((task_id,)) if self._is_ignored(name, sent) else _NOTHING,
        )

    def _is_ignored(self, name: str, sent: _Sent) -> bool:
        if sent.ignored is not None:
            return bool(sent.ignored)
        # The worker keeps the result of such a task to itself; whoever waits for it waits for ever.
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


class _PoolOfOne:
    """A producer pool for kombu's mailbox, which takes its producer from one."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @contextmanager
    def acquire(self) -> Iterator[Recorder]:
        yield self._recorder
