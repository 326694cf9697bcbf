"""Sends control commands and queries to workers: Celery's own client code, with Deferreds.

No command is written down here. A method of `Control` or `Inspect` runs the method of the same
name of the application's own ``control`` and ``control.inspect``, so what a new Celery or the
application adds is there as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from copy import copy
from functools import cached_property, partial, update_wrapper
from typing import TYPE_CHECKING, Any, Protocol

from kombu.pidbox import Mailbox
from kombu.utils.uuid import uuid
from twisted.internet.defer import Deferred, maybeDeferred

from twistedcelery._types import Clock
from twistedcelery.encoding.app_view import view_of
from twistedcelery.encoding.replay import Replay
from twistedcelery.errors import InvalidCall
from twistedcelery.workers.commands import ControlCommands, InspectQueries
from twistedcelery.workers.inbox import Inbox
from twistedcelery.workers.offline_channel import OfflineChannel
from twistedcelery.workers.replies import Replies, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from twistedcelery.transports.binding import Binding
    from twistedcelery.workers.commands import Workers

__all__ = ["Control", "Inspect"]

_BROADCAST = inspect.signature(Mailbox._broadcast)  # noqa: SLF001  # Celery calls it as well


class _Methods:
    """The public methods of an object of Celery's, each returning a Deferred."""

    #: The object, made to wait in `_replay`.
    _of: Any
    _replay: Replay

    def _method(self, name: str) -> Callable[..., Deferred[Any]]:
        method = None if name.startswith("_") else getattr(self._of, name, None)
        if not callable(method):
            # It is what attribute access raises.
            raise AttributeError(f"Celery's control has no method {name!r}")  # noqa: TRY004  # see above

        def call(*args: Any, **kwargs: Any) -> Deferred[Any]:
            return self._replay.run(partial(method, *args, **kwargs))

        return update_wrapper(call, method)

    if not TYPE_CHECKING:
        # Type checkers look at twistedcelery.workers.commands instead, where a misspelt name is an error.
        __getattr__ = _method

    def __dir__(self) -> list[str]:
        own = (name for name in dir(self._of) if not name.startswith("_"))
        return sorted({*super().__dir__(), *(name for name in own if callable(getattr(self._of, name)))})


class Inspect(_Methods, InspectQueries):
    """Celery's ``app.control.inspect(...)``: ``active()``, ``stats()``, ``query_task(...)`` and all others.

    Each query returns a Deferred that fires with what Celery's own returns: a dictionary by
    worker, or ``None`` when no worker has replied. It fails as the methods of `Control` do.
    """

    def __init__(self, of: Any, replay: Replay) -> None:
        self._of = of
        self._replay = replay


class Inspecting(Protocol):
    """What `Control.inspect` is: called, it makes an `Inspect`."""

    def __call__(
        self,
        destination: Workers = None,
        timeout: float | None = 1.0,
        callback: Callable[[dict[str, Any]], object] | None = None,
        connection: None = None,
        app: None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Inspect: ...


class Control(_Methods, ControlCommands):
    """Celery's ``app.control``: ``ping()``, ``rate_limit(...)``, ``shutdown()`` and all other commands.

    Each takes Celery's own arguments and returns a Deferred that fires with what Celery's own
    returns: ``None`` once the broker has the command, or with ``reply=True`` the list of replies.
    It fails with a `PublishError` where the command did not get out, with `RepliesLost` when the
    connection is lost while replies are waited for, and never raises.

    :param app: the configured Celery application
    :param timeout: seconds that the broker may take until replies can be received
    :param binding: has the transport that sends commands and consumes replies
    """

    def __init__(self, app: Celery, reactor: Clock, timeout: float, binding: Binding) -> None:
        self._app = app
        self._reactor = reactor
        self._timeout = timeout
        self._binding = binding
        self._replay = Replay(self._broadcast)

    # What follows is made at its first use: a client of calls alone does without it.

    @cached_property
    def _mailbox(self) -> Any:
        return _own_mailbox(self._app)

    @cached_property
    def _offline(self) -> OfflineChannel:
        return OfflineChannel(self._app.connection_for_write())

    @cached_property
    def _of(self) -> Any:
        return _control_of(self._app, self._replay, self._offline)

    @cached_property
    def _replies(self) -> Replies:
        return Replies(
            self._reactor,
            self._mailbox.get_reply_queue(),
            Inbox(self._mailbox.accept, "a reply to a control command", self._reactor.seconds),
            self._binding,
            self._timeout,
            self._mailbox.clock.adjust,
        )

    @property
    def inspect(self) -> Inspecting:
        """As Celery's: ``inspect(destination=None, timeout=1.0, callback=None, limit=None,
        pattern=None, matcher=None)``.

        It raises `InvalidCall` for other arguments, and for ``connection`` and ``app``, which would
        take the query past this client.
        """
        return self._new_inspect

    def _new_inspect(self, *args: Any, **kwargs: Any) -> Inspect:
        try:
            asking = self._of.inspect(*args, **kwargs)
        except TypeError as error:
            raise InvalidCall(str(error)) from error
        if asking.app is not self._of.app or asking.connection is not None:
            raise InvalidCall("inspect(connection=..., app=...) is for Celery's blocking client")
        return Inspect(asking, self._replay)

    def purge(self, connection: None = None) -> Deferred[int]:
        """Discard all tasks that wait in the queues which the application consumes.

        :return: fires with their number, or fails with a `PublishError`
        """

        def purge() -> Deferred[int]:
            if connection is not None:
                raise InvalidCall("purge(connection=...) is for Celery's blocking client")
            return self._binding.use().subscriber.purge(list(self._app.amqp.queues.consume_from.values()))

        return maybeDeferred(purge)

    discard_all = purge

    def _broadcast(self, *args: Any, **kwargs: Any) -> Deferred[list[Any] | None]:
        return Deferred.fromCoroutine(self._send(_BROADCAST.bind(None, *args, **kwargs).arguments))

    async def _send(self, arguments: dict[str, Any]) -> list[Any] | None:
        """:param arguments: those of kombu's ``Mailbox._broadcast``"""
        del arguments["self"]
        if arguments.pop("channel", None) is not None:
            raise InvalidCall("channel=... is for Celery's blocking client")
        if arguments.get("reply"):
            await self._replies.ready()
        transport = self._binding.use()
        message = transport.encoder.broadcast(self._mailbox, **arguments, channel=self._offline)
        published = transport.publisher.publish(message)
        request = self._mailbox.take_request()
        if request is None:
            await published
            return None
        return await self._replies.collect(request, published)


def _own_mailbox(app: Celery) -> Any:
    """A kombu mailbox like the application's, which notes what replies it is to collect."""
    original = app.control.mailbox

    class OwnMailbox(type(original)):  # type: ignore[misc]  # a class that is known only at run time
        oid = uuid()
        _request: Request | None = None

        def _collect(
            self, ticket: str, limit: Any = None, timeout: Any = 1, callback: Any = None, **_: Any
        ) -> None:
            self._request = Request(ticket, limit, timeout, callback)

        def take_request(self) -> Request | None:
            request, self._request = self._request, None
            return request

    mailbox = OwnMailbox.__new__(OwnMailbox)
    mailbox.__dict__.update(original.__dict__)
    # The application's own, if it has used it.
    mailbox.__dict__.pop("reply_queue", None)
    return mailbox


def _control_of(app: Celery, replay: Replay, offline: OfflineChannel) -> Any:
    """The application's control object with everything that would block replaced."""
    control = copy(app.control)
    view = view_of(app, None)

    class ControlView(type(view)):  # type: ignore[misc]  # a class that is known only at run time
        @contextmanager
        def connection_or_acquire(self, connection: Any = None, *_: Any, **__: Any) -> Iterator[Any]:
            yield connection or offline

    # Celery's Inspect broadcasts through its application's control.
    ControlView.control = property(lambda _: control)
    control.app = ControlView.__new__(ControlView)
    control.app.__dict__ = app.__dict__
    # The application's own, if it has used it.
    control.__dict__.pop("inspect", None)
    control.mailbox = _ReplayedMailbox(replay, offline)
    return control


class _ReplayedMailbox:
    """What Celery's code takes for a kombu mailbox."""

    def __init__(self, replay: Replay, offline: OfflineChannel) -> None:
        self._offline = offline
        self._broadcast = replay.step

    def __call__(self, connection: Any) -> _ReplayedMailbox:
        if connection is not self._offline:
            raise InvalidCall("connection=... is for Celery's blocking client")
        return self
