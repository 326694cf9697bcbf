"""Fakes of the library's client and of a WAMP session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.request import Registration
from autobahn.wamp.types import CallDetails
from celery import states
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from twistedcelery import TaskDeferred

__all__ = ["FakeClient", "FakeControl", "FakeSession", "FakeStream", "call_details"]


class FakeControl:
    """Remembers commands to workers; the test answers them.

    :ivar sent: name, positional arguments, keywords, options of a query (``None``: it was a command), answer
    """

    def __init__(self) -> None:
        self.sent: list[
            tuple[str, tuple[Any, ...], dict[str, Any], dict[str, Any] | None, Deferred[Any]]
        ] = []

    def inspect(self, **options: Any) -> Any:
        return _FakeMethods(self.sent, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(_FakeMethods(self.sent, None), name)


class _FakeMethods:
    def __init__(self, sent: list[Any], options: dict[str, Any] | None) -> None:
        self._sent = sent
        self._options = options

    def __getattr__(self, name: str) -> Any:
        def send(*args: Any, **kwargs: Any) -> Deferred[Any]:
            answer: Deferred[Any] = Deferred()
            self._sent.append((name, args, kwargs, self._options, answer))
            return answer

        return send


class FakeStream:
    """Celery's event stream; the test sends the events."""

    def __init__(self, handlers: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.handlers = handlers
        self.options = options
        self.connected = self.closed = False
        self._waiters: list[Deferred[None]] = []

    @property
    def ready(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        if self.connected:
            waiter.callback(None)
        else:
            self._waiters.append(waiter)
        return waiter

    def connect(self) -> None:
        self.connected = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def close(self) -> Deferred[None]:
        self.closed = True
        return succeed(None)

    def send(self, type_: str, uuid: str | None = None, **fields: Any) -> None:
        """Send one event, as Celery's ``Receiver`` passes it on."""
        event = {"type": type_, "hostname": "w1", "timestamp": 500.0, "local_received": 501.0, **fields}
        self.handlers["*"](event if uuid is None else {**event, "uuid": uuid})

    def tell(self, event: str, worker: Any) -> None:
        """A worker sends an event."""
        self.handlers[event]({"type": event, "hostname": worker, "pid": 1})


class FakeResult:
    """A `twistedcelery.results.result.TaskResult` that the test answers for.

    :ivar asked: the Deferreds that ``state`` and ``get()`` have given
    """

    def __init__(self) -> None:
        self.meta: Mapping[str, Any] | None = None
        self.asked: list[Deferred[Any]] = []

    @property
    def state(self) -> Deferred[Any]:
        return self.get()

    def get(self) -> Deferred[Any]:
        self.asked.append(Deferred())
        return self.asked[-1]


class _FakeDispatch:
    """Remembers cancelled calls."""

    def __init__(self, call: TaskDeferred, cancelled: list[TaskDeferred]) -> None:
        self._call = call
        self._cancelled = cancelled

    def cancel(self) -> None:
        self._cancelled.append(self._call)


class FakeClient:
    """Remembers the calls that `twistedcelery.TwistedCelery` would have sent.

    The calls themselves are real: the test plays the broker and the worker by their methods
    ``mark_published``, ``update``, ``finish`` and ``fail_published``.
    """

    def __init__(self) -> None:
        self.calls: list[TaskDeferred] = []
        self.sent: list[tuple[str, list[Any], dict[str, Any], dict[str, Any]]] = []
        self.cancelled: list[TaskDeferred] = []
        self.revoked: list[tuple[str, bool]] = []
        self.disconnected: Deferred[None] = Deferred()
        self.connected = True
        self.control = FakeControl()
        self.streams: list[FakeStream] = []
        self.broker_connected = self.backend_connected = True
        self.keeps_results = False
        #: What the result backend keeps, by task id.
        self.results: dict[str, FakeResult] = {}
        #: Raised as the failure of the next call.
        self.refuse: Exception | None = None

    @property
    def in_flight(self) -> int:
        return sum(not call.called for call in self.calls)

    def send_task(
        self, name: str, args: list[Any], kwargs: dict[str, Any], task_id: str, **options: Any
    ) -> TaskDeferred:
        call = TaskDeferred(task_id, name, self)
        call.dispatch = _FakeDispatch(call, self.cancelled)
        self.sent.append((name, args, kwargs, options))
        self.calls.append(call)
        if self.refuse is not None:
            call.fail_published(Failure(self.refuse))
        return call

    def revoke(self, task_id: str, terminate: bool = False, signal: str = "SIGTERM") -> Deferred[None]:
        self.revoked.append((task_id, terminate))
        return succeed(None)

    def result(self, task_id: str) -> FakeResult:
        return self.results.setdefault(task_id, FakeResult())

    def events(self, handlers: Mapping[str, Any], **options: Any) -> FakeStream:
        self.streams.append(FakeStream(handlers, options))
        return self.streams[-1]

    def disconnect(self) -> Deferred[None]:
        return self.disconnected


def final(state: str, result: Any, **more: Any) -> Mapping[str, Any]:
    """The meta of a final state."""
    return {"status": state, "result": result, "traceback": None, "children": [], **more}


def success(result: Any) -> Mapping[str, Any]:
    return final(states.SUCCESS, result)


def failure(error: Exception, traceback: str | None = None) -> Mapping[str, Any]:
    return final(states.FAILURE, error, traceback=traceback)


class FakeSession:
    """A WAMP session that is attached, and remembers what it publishes and calls."""

    def __init__(self) -> None:
        self.attached = True
        self.published: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.calls: list[tuple[str, tuple[Any, ...], Deferred[Any]]] = []
        self.max_size = 2**20
        #: Registrations and subscriptions that the test is to answer: URI, policy, answer.
        self.requests: list[tuple[str, str, Deferred[Any]]] = []
        self.listeners: dict[str, Any] = {}

    def is_attached(self) -> bool:
        return self.attached

    def publish(self, topic: str, options: Any, **payload: Any) -> None:
        assert self.attached
        self.published.append((topic, payload, options.message_attr()))

    def leave(self) -> Deferred[None]:
        self.left: Deferred[None] = Deferred()
        return self.left

    def call(self, procedure: str, *args: Any) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self.calls.append((procedure, args, answer))
        return answer

    def provide(self, uri: str, handler: Any, invoke: str) -> Deferred[Any]:
        return self._requested(uri, invoke)

    def listen(self, topic: str, match: str, subscriber: Any) -> Deferred[Any]:
        if topic.startswith("wamp."):
            # Not answered, so that everything is published.
            return Deferred()
        self.listeners[topic] = subscriber
        return self._requested(topic, match)

    def refuse(self, error: str) -> None:
        """Answer the latest request with an error."""
        self.requests.pop()[2].errback(Failure(ApplicationError(error)))

    def _requested(self, uri: str, how: str) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self.requests.append((uri, how, answer))
        return answer

    def topics(self, prefix: str = "celery.") -> list[str]:
        """The topics of the published events below a prefix, in order."""
        return [topic.removeprefix(prefix) for topic, _, _ in self.published if topic.startswith(prefix)]


def call_details(progress: Any = None, caller: int | None = 7, authid: str | None = "joe") -> CallDetails:
    """The details of a call, as Autobahn passes them to an endpoint."""
    registration = Registration(None, 1, "procedure", None)
    return CallDetails(
        registration, progress=progress, caller=caller, caller_authid=authid, caller_authrole="user"
    )
