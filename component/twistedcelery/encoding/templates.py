"""Fills in messages of calls that differ from earlier ones in their id and arguments alone.

Celery's ``send_task`` takes some 0.25 ms. It spends nearly all of it on routes, settings and options, which
are the same for most calls of a program. So the first two messages of a kind, made by Celery, become a
template: what they have in common stays, and each further call adds its id and its arguments. kombu still
serialises the arguments, and Celery's own function still makes their ``argsrepr``.

Celery makes the whole message where something else could change it: options beyond the plain ones, an ETA or
an expiry, routes that are functions, handlers of the publish signals, a current worker task, or foreign code
in place of Celery's. Replaced settings, queues or routes discard the templates.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import TYPE_CHECKING, Any

import celery.app.amqp
import celery.app.base
import celery.app.routes
import kombu.messaging
import kombu.serialization
import kombu.utils.json
from celery import signals
from celery.utils.saferepr import saferepr

from twistedcelery.encoding.app_view import is_from
from twistedcelery.encoding.message import Form, OutgoingMessage

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Learned", "Templates"]

#: Options whose value goes into the message as it is, or chooses its address.
_PLAIN_OPTIONS = frozenset(
    {
        "add_to_parent",
        "confirm_timeout",
        "delivery_mode",
        "exchange",
        "ignore_result",
        "priority",
        "queue",
        "reply_to",
        "retry",
        "routing_key",
        "serializer",
        "soft_time_limit",
        "time_limit",
        "timeout",
    }
)
_PLAIN_VALUES = frozenset({str, int, float, bool, NoneType})

#: Kinds of calls that are remembered. Options may be anything, and a program may have many.
_MAX_KNOWN = 1000

_SIGNALS = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)


@dataclass(frozen=True, slots=True)
class Learned:
    """How the messages of one kind of call look.

    :ivar message: an example
    :ivar ignored: whether the task has no result
    """

    message: OutgoingMessage
    ignored: bool
    _ids: tuple[str, ...]
    _form: Form
    _around: tuple[bytes, bytes, bytes]
    _reprs: _Reprs

    def fill(
        self, task_id: str, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
    ) -> OutgoingMessage:
        """Make the message of another call.

        :raises kombu.exceptions.EncodeError: the arguments cannot be serialised
        """
        example = self.message
        args, kwargs = args or (), kwargs or {}
        headers = dict(example.headers)
        headers["argsrepr"] = self._reprs.of_args(args)
        headers["kwargsrepr"] = self._reprs.of_kwargs(kwargs)
        for name in self._ids:
            headers[name] = task_id
        begin, between, end = self._around
        return OutgoingMessage(
            body=b"".join((begin, _json(args), between, _json(kwargs) if kwargs else b"{}", end)),
            properties={**example.properties, "correlation_id": task_id},
            headers=headers,
            exchange=example.exchange,
            routing_key=example.routing_key,
            declare=example.declare,
            mandatory=example.mandatory,
            resend=example.resend,
            confirm_timeout=example.confirm_timeout,
            form=self._form,
        )


class Templates:
    """What was learned of an application's messages.

    :param app: the application
    :param view: the view of it that sends; see `twistedcelery.encoding.app_view`
    """

    def __init__(self, app: Celery, view: Celery) -> None:
        self._app = app
        self._view = view
        # Of each kind: an example, and then, once a second one has agreed with it, how all of them look.
        # None: they differ in more.
        self._examples: dict[Hashable, Learned | None] = {}
        self._known: dict[Hashable, Learned] = {}
        self._origin = _Origin(app, view)

    def kind(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Hashable | None:
        """Which calls this one is like.

        :param options: those of ``send_task``, by name
        :return: ``None`` when it has to go the whole way
        """
        if type(args) not in _ARGS or type(kwargs) not in _KWARGS or not self._is_usual():
            return None
        task = self._view._tasks.get(name)  # noqa: SLF001  # as in Celery's send_task: `tasks` would finalize
        registered = None if task is None else (task, getattr(task, "ignore_result", None))
        if not options:
            return name, registered
        given: list[Any] = []
        for option, value in options.items():
            cls = type(value)
            if cls not in _PLAIN_VALUES or option not in _PLAIN_OPTIONS:
                return None
            # The class, too: 1 and True are equal.
            given += (option, value, cls)
        return name, registered, *given

    def is_observed(self) -> bool:
        """Whether a handler of the publish signals or an instrumentation of ``send_task`` sees each call."""
        return _has_handlers() or not is_from(celery.app.base, type(self._view).send_task)

    def _is_usual(self) -> bool:
        """Whether the message depends on Celery, the name, the arguments and the options alone."""
        if _has_handlers() or self._view.current_worker_task is not None:
            return False
        if not self._origin.is_unchanged():
            self._forget()
            self._origin = _Origin(self._app, self._view)
        return self._origin.is_celerys

    def _forget(self) -> None:
        self._examples.clear()
        self._known.clear()

    def find(self, kind: Hashable) -> Learned | None:
        """How the messages of a kind look, once that is known."""
        return self._known.get(kind)

    def learn(
        self,
        kind: Hashable,
        message: OutgoingMessage,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        *,
        ignored: bool,
    ) -> None:
        """Learn from a message that Celery has made.

        :param args: it was made of these
        """
        if len(self._examples) >= _MAX_KNOWN:
            self._forget()
        if kind not in self._examples:
            self._examples[kind] = self._example(message, args or (), kwargs or {}, ignored=ignored)
            return
        example = self._examples[kind]
        task_id = message.task_id
        if example is None or task_id is None or task_id == example.message.task_id:
            return
        if ignored is example.ignored and _is_alike(example.fill(task_id, args, kwargs), message):
            self._known[kind] = example
        else:
            self._examples[kind] = None

    def _example(
        self, message: OutgoingMessage, args: Sequence[Any], kwargs: Mapping[str, Any], *, ignored: bool
    ) -> Learned | None:
        headers, properties = message.headers, message.properties
        if (
            "id" not in headers
            or "compression" in headers
            or headers.get("eta")
            or headers.get("expires")
            or "expiration" in properties
            or (properties.get("content_type"), properties.get("content_encoding"))
            != ("application/json", "utf-8")
        ):
            return None
        begin, between = b"[" + _json(args), b", " + _json(kwargs)
        if not message.body.startswith(begin + between):
            return None
        ids = tuple(name for name, value in headers.items() if value == message.task_id)
        return Learned(
            # Without the arguments, which may be large.
            replace(message, body=b""),
            ignored,
            _ids=ids,
            _form=Form((*ids, "argsrepr", "kwargsrepr")),
            _around=(b"[", b", ", message.body[len(begin + between) :]),
            _reprs=self._origin.reprs,
        )


class _Origin:
    """What an application's messages follow from, as it was."""

    def __init__(self, app: Celery, view: Celery) -> None:
        self._view = view
        self._amqp = amqp = app.amqp
        self._conf = conf = app.conf
        self._changes = dict(conf.changes)
        self._maps = len(conf.maps)
        self._router = amqp.router
        self._send_task_message = amqp.send_task_message
        self._send_task = type(view).send_task
        self._publish = kombu.messaging.Producer.publish
        self.reprs = _Reprs(
            amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize, getattr(conf, "task_repr_maxlevels", 3)
        )
        registry = kombu.serialization.registry
        #: Whether all code on the way is Celery's and kombu's own.
        self.is_celerys = (
            type(amqp) is celery.app.amqp.AMQP
            and type(amqp.router) is celery.app.routes.Router
            and all(type(route) is celery.app.routes.MapRoute for route in amqp.router.routes)
            and not conf.task_always_eager
            and is_from(celery.app.base, self._send_task)
            and is_from(celery.app.amqp, self._send_task_message)
            and is_from(celery.app.amqp, getattr(amqp.create_task_message, "__func__", None))
            and is_from(kombu.messaging, self._publish)
            and is_from(kombu.utils.json, registry._encoders["json"].encoder)  # noqa: SLF001  # has no accessor
        )

    def is_unchanged(self) -> bool:
        """Whether everything is as it was."""
        view, conf = self._view, self._view.conf
        if conf is not self._conf or conf.changes != self._changes or len(conf.maps) != self._maps:
            return False
        # Out of the dictionaries, where Celery keeps what it has made: these are read at each call.
        amqp = view.__dict__["amqp"]
        made = amqp.__dict__
        return (
            amqp is self._amqp
            and made.get("router") is self._router
            and made.get("send_task_message") is self._send_task_message
            and type(view).send_task is self._send_task
            and "send_task" not in view.__dict__
            and kombu.messaging.Producer.publish is self._publish
        )


@dataclass(frozen=True, slots=True)
class _Reprs:
    """The descriptions of arguments for people, as Celery makes them.

    :ivar args_size: characters that those of the positional ones may have
    """

    args_size: int
    kwargs_size: int
    levels: int

    def of_args(self, args: Sequence[Any]) -> str:
        if len(args) <= _FEW and _is_simple(args):
            return repr(args)
        text: str = saferepr(args, self.args_size, maxlevels=self.levels)
        return text

    def of_kwargs(self, kwargs: Mapping[str, Any]) -> str:
        if not kwargs:
            return "{}"
        text: str = saferepr(kwargs, self.kwargs_size, maxlevels=self.levels)
        return text


_ARGS = frozenset({tuple, list, NoneType})
_KWARGS = frozenset({dict, NoneType})

#: So many short values are described alike by ``repr``, in a tenth of the time.
_FEW = 8
_SHORT = 32


def _has_handlers() -> bool:
    """Whether a handler of a publish signal is connected."""
    for signal in _SIGNALS:  # noqa: SIM110  # `any` takes twice as long, and this is asked at each call
        if signal.receivers:
            return True
    return False


def _is_simple(values: Sequence[Any]) -> bool:
    for value in values:
        cls = type(value)
        if cls is str:
            if len(value) > _SHORT or not value.isprintable() or "'" in value or "\\" in value:
                return False
        elif cls is int:
            if not -(2**63) <= value < 2**63:
                return False
        elif cls is not bool and value is not None:
            return False
    return True


def _is_alike(one: OutgoingMessage, other: OutgoingMessage) -> bool:
    # With the order in which the headers are written.
    return one == other and list(one.headers) == list(other.headers)


def _json(value: Any) -> bytes:
    text: str = kombu.serialization.dumps(value, "json")[2]
    return text.encode()
