"""Control commands and queries to workers: Celery's own client code, as Deferreds.

No command is written down here. A method of `Control` or `Inspect` runs the method of the same
name of the application's own ``control`` and ``control.inspect``, so what a new Celery or the
application adds is there as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from copy import copy
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Protocol

from kombu.pidbox import Mailbox
from kombu.utils.uuid import uuid
from twisted.internet.defer import Deferred, maybeDeferred

from twistedcelery._types import Clock
from twistedcelery.appview import view_of
from twistedcelery.commands import ControlCommands, InspectQueries
from twistedcelery.errors import InvalidCall
from twistedcelery.incoming import Inbox
from twistedcelery.offline import OfflineChannel
from twistedcelery.replay import Replay
from twistedcelery.replies import Replies, Request
from twistedcelery.transports.interface import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from twistedcelery.commands import Workers

__all__ = ["Broadcaster", "Control", "Inspect"]

_BROADCAST = inspect.signature(Mailbox._broadcast)  # noqa: SLF001  # Celery calls it as well


class Broadcaster(Protocol):
    """As `twistedcelery.outbox.Outbox`."""

    def broadcast(self, mailbox: Any, **arguments: Any) -> Deferred[None]: ...


class _Methods:
    """The public methods of an object of Celery's, each returning a Deferred.

    :param of: the object, made to wait in ``replay``
    """

    def __init__(self, of: Any, replay: Replay) -> None:
        self._of = of
        self._replay = replay

    def _method(self, name: str) -> Callable[..., Deferred[Any]]:
        method = None if name.startswith("_") else getattr(self._of, name, None)
        if not callable(method):
            # It is what attribute access raises.
            raise AttributeError(  # noqa: TRY004  # see above
                f"Celery's {type(self._of).__name__} has no method {name!r}"
            )

        def call(*args: Any, **kwargs: Any) -> Deferred[Any]:
            return self._replay.run(partial(method, *args, **kwargs))

        return update_wrapper(call, method)

    if not TYPE_CHECKING:
        # Type checkers look at twistedcelery.commands instead, where a misspelt name is an error.
        __getattr__ = _method

    def __dir__(self) -> list[str]:
        own = (name for name in dir(self._of) if not name.startswith("_"))
        return sorted({*super().__dir__(), *(name for name in own if callable(getattr(self._of, name)))})


class Inspect(_Methods, InspectQueries):
    """Celery's ``app.control.inspect(...)``: ``active()``, ``stats()``, ``query_task(...)`` and all others.

    Each query returns a Deferred that fires with what Celery's own returns: a dictionary by
    worker, or ``None`` when no worker has replied. It fails as the methods of `Control` do.
    """


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
    :param connect: returns what sends commands; may raise a `TwistedCeleryError`
    :param subscriber: returns what consumes replies
    """

    def __init__(
        self,
        app: Celery,
        reactor: Clock,
        timeout: float,
        connect: Callable[[], Broadcaster],
        subscriber: Callable[[], Subscriber],
    ) -> None:
        self._app = app
        self._connect = connect
        self._subscriber = subscriber
        self._mailbox = _own_mailbox(app)
        self._offline = OfflineChannel(app.connection_for_write())
        self._replies = Replies(
            reactor,
            self._mailbox.get_reply_queue(),
            Inbox(self._mailbox.accept, "a reply to a control command"),
            subscriber,
            timeout,
            self._mailbox.clock.adjust,
        )
        replay = Replay(self._broadcast)
        super().__init__(_control_of(app, replay, self._offline), replay)

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
            return self._subscriber().purge(list(self._app.amqp.queues.consume_from.values()))

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
        published = self._connect().broadcast(self._mailbox, **arguments, channel=self._offline)
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
