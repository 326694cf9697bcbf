"""A bridge over a fake client, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from celery import Celery
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from tests.unit.wamp.fakes import FakeClient, FakeSession, FakeStream, call_details
from twistedcelery.wamp.bridge import Bridge
from twistedcelery.wamp.config import Configuration
from twistedcelery.wamp.invocation import OpenInvocations


def make_app() -> Celery:
    """An application with a few tasks that never run."""
    app = Celery("app", broker="memory://", set_as_current=False)

    @app.task(name="app.add", shared=False, time_limit=60)
    def add(x: int, y: int) -> int:
        """Add."""

    @app.task(name="app.bound", bind=True, shared=False)
    def bound(self: Any, x: int, *, flag: bool = False) -> None:
        pass

    @app.task(name="app.untyped", typing=False, shared=False, ignore_result=True)
    def untyped(x: int) -> None:
        pass

    @app.task(name="white space", shared=False)
    def white_space() -> None:
        pass

    return app


class Setup:
    """A bridge with a fake client, a fake session and a clock."""

    def __init__(self, **extra: Any) -> None:
        self.client = FakeClient()
        self.clock = Clock()
        self.session = FakeSession()
        config = Configuration.parse({"app": "app", **extra})
        self.bridge = Bridge(
            config,
            make_app(),
            self.clock,
            self.client,
            lambda: 1000.0 + self.clock.seconds(),
            realm="realm1",
        )
        self.open = OpenInvocations(self.bridge.errors, self.session)
        self.bridge.attach(self.session)

    def call(
        self,
        name: str,
        *args: Any,
        progress: Any = None,
        caller: int | None = 7,
        authid: str | None = "joe",
        **keywords: Any,
    ) -> Deferred[Any]:
        """Call a procedure as Autobahn does: by the last part of its URI."""
        prefix = self.bridge.uris.prefix
        uri = name if name.startswith((f"{prefix}_api.", f"{prefix}_admin.")) else f"{prefix}.{name}"
        endpoint = self.open.endpoint(self.bridge.procedures[uri])
        return endpoint(*args, details=call_details(progress, caller, authid), keywords=keywords)

    def lead(self) -> FakeStream:
        """Make the bridge the leader, and return the leader's stream, which is ready."""
        self.session.requests.pop(0)[2].callback(None)
        self.client.streams[-1].connect()
        return self.client.streams[-1]

    @property
    def last(self) -> Any:
        """The last call that reached the library."""
        return self.client.calls[-1]


@pytest.fixture
def setup() -> Callable[..., Setup]:
    """``setup(**extra)``: a bridge with this configuration."""
    return Setup


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What this package logs, as text. Other loggers may still have work from earlier tests."""
    lines: list[str] = []

    def observe(event: Mapping[str, Any]) -> None:
        if str(event.get("log_namespace", "")).startswith("twistedcelery."):
            lines.append(str(event.get("log_format", "")).format(**event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def error_of(deferred: Deferred[Any]) -> Any:
    """Return the error that a Deferred has failed with."""
    failures: list[Any] = []
    deferred.addErrback(failures.append)
    assert failures, f"it has not failed: {deferred}"
    return failures[0].value


def result_of(deferred: Deferred[Any]) -> Any:
    """Return the value that a Deferred has fired with."""
    results: list[Any] = []
    deferred.addCallback(results.append)
    assert results, f"it has not fired: {deferred}"
    return results[0]
