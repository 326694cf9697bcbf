"""Operators' commands, from a WAMP call to Celery's own client and back, without any I/O."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from celery.app.control import Control, Inspect
from celery.worker.control import Panel, control_command, inspect_command
from twisted.python.failure import Failure

from tests.support.process import ROOT
from tests.unit.wamp.conftest import error_of, result_of
from twistedcelery import BrokerUnavailable, InvalidCall, RepliesLost
from twistedcelery.wamp.operators.api import MAX_WAITING

WORKER = "celery@host"


@pytest.fixture
def panel(monkeypatch):
    """Restore the workers' control panel after the test."""
    monkeypatch.setattr(Panel, "data", dict(Panel.data))
    monkeypatch.setattr(Panel, "meta", dict(Panel.meta))


def names(setup):
    """The last components of the procedures for operators."""
    uris = [uri for uri in setup().bridge.procedures if uri.startswith("celery_admin.")]
    return {uri.rpartition(".")[2] for uri in uris if ".sent_by." not in uri}


def test_every_command_of_celery_is_there(setup):
    """Every public method of Celery's Control and Inspect is a procedure, but not elections."""
    methods = {
        name
        for kind in (Control, Inspect)
        for name, _ in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }
    assert names(setup) == methods - {"election"} | {"commands"}
    assert {"ping", "active", "revoke", "rate_limit", "shutdown", "purge", "add_consumer"} <= methods


REPLY = {"reply": True}


@pytest.mark.parametrize(
    ("command", "args", "keywords", "sent"),
    [
        ("ping", (), {}, ((), {}, {})),
        ("active", (), {"destination": [WORKER]}, ((), {}, {"destination": [WORKER]})),
        ("active", (True,), {"limit": 1, "timeout": 2}, ((True,), {}, {"limit": 1, "timeout": 2})),
        ("query_task", ("a", "b"), {}, (("a", "b"), {}, {})),
        ("query_task", (["a", "b"],), {}, ((["a", "b"],), {}, {})),
        ("conf", (), {"with_defaults": True}, ((True,), {}, {})),
        # Celery itself would leave out a pattern without a matcher, and address every worker.
        ("stats", (), {"pattern": "c*"}, ((), {}, {"pattern": "c*", "matcher": "glob"})),
        ("shutdown", (), {"pattern": "c*"}, ((), {**REPLY, "pattern": "c*", "matcher": "glob"}, None)),
        (
            *("shutdown", (), {"pattern": "c.*", "matcher": "pcre"}),
            ((), {**REPLY, "pattern": "c.*", "matcher": "pcre"}, None),
        ),
        ("revoke", ("id",), {"terminate": True}, (("id",), {"terminate": True, **REPLY}, None)),
        ("revoke", (), {"task_id": ["id"], "reply": False}, ((["id"],), {"reply": False}, None)),
        ("rate_limit", ("app.add", "10/m"), {}, (("app.add", "10/m"), REPLY, None)),
        ("rate_limit", ("app.add", 0.5), {}, (("app.add", 0.5), REPLY, None)),
        ("time_limit", ("app.add", 5, 10), {}, (("app.add", 5, 10), REPLY, None)),
        ("autoscale", (10, 0), {}, ((10, 0), REPLY, None)),
        (
            *("add_consumer", ("q",), {"options": {"durable": True}}),
            (("q",), {"options": {"durable": True}, **REPLY}, None),
        ),
        ("purge", (), {}, ((), {}, None)),
        ("broadcast", ("custom", {"x": 1}), {}, (("custom", {"x": 1}), REPLY, None)),
    ],
)
def test_a_command_is_celery_s(command, args, keywords, sent, setup):
    """It takes the arguments of Celery's method, and options under Celery's names."""
    one = setup()
    answer = one.call(f"celery_admin.{command}", *args, **keywords)
    assert [call[:4] for call in one.client.control.sent] == [(command, *sent)]
    assert not answer.called


@pytest.mark.parametrize(
    ("command", "args", "keywords", "says"),
    [
        ("ping", ("x",), {}, "ping: too many positional arguments"),
        ("rate_limit", ("app.add",), {}, "rate_limit: missing a required argument: 'rate_limit'"),
        ("revoke", ("id", [WORKER]), {}, "too many positional arguments"),
        ("ping", (), {"callback": 1}, "unexpected keyword argument 'callback'"),
        ("revoke", ("id",), {"connection": "amqp://"}, "unexpected keyword argument 'connection'"),
        ("ping", (), {"reply": False}, "unexpected keyword argument 'reply'"),
        ("shutdown", (), {"timeout": None}, "timeout takes a number of seconds above 0, at most 60"),
        ("ping", (), {"timeout": 0}, "timeout takes"),
        ("ping", (), {"timeout": 1e9}, "timeout takes"),
        ("ping", (), {"timeout": True}, "timeout takes"),
        ("ping", (), {"timeout": float("nan")}, "value['timeout'] is nan"),
        ("shutdown", (), {"destination": []}, "destination takes a list of texts that is not empty"),
        ("shutdown", (), {"destination": WORKER}, "destination takes a list of texts"),
        ("ping", (), {"destination": [3]}, "each of destination takes text"),
        ("ping", (), {"limit": -1}, "limit takes a whole number from 1"),
        ("ping", (), {"pattern": "*", "matcher": "regex"}, "the matchers are 'glob' and 'pcre'"),
        ("ping", (), {"pattern": "(", "matcher": "pcre"}, "pattern and matcher: error"),
        ("shutdown", (), {"reply": "no"}, "reply takes true or false"),
        ("rate_limit", ("app.add", "nan"), {}, "rate_limit takes a number of tasks a second"),
        ("rate_limit", ("app.add", "-1/s"), {}, "rate_limit takes"),
        ("rate_limit", ("app.add", [1]), {}, "rate_limit takes"),
        ("rate_limit", ("app.add", -1), {}, "rate_limit takes"),
        ("rate_limit", (7, "1/s"), {}, "task_name takes text"),
        ("time_limit", ("app.add", "5"), {}, "soft takes a number of seconds"),
        ("pool_grow", (10**9,), {}, "n takes a whole number from 1 to 1000"),
        ("pool_shrink", (-1,), {}, "n takes"),
        ("autoscale", ("9", 1), {}, "max takes"),
        ("add_consumer", (None,), {}, "queue takes text"),
        ("add_consumer", ("q", "x", "nonsense"), {}, "exchange_type takes one of 'direct'"),
        ("add_consumer", ("q",), {"options": {"queue": 5}}, "options takes an object with some of the keys"),
        ("add_consumer", ("q",), {"options": {"durable": 5}}, "options['durable'] takes true or false"),
        ("revoke", ([],), {}, "task_id takes a list of texts that is not empty"),
        ("revoke", ({"a": 1},), {}, "task_id takes"),
        ("revoke", ("x" * 256,), {}, "task_id takes text of 1 to 255 bytes"),
        ("revoke", (["x" * 250] * 5000,), {}, "makes the whole take more than"),
        ("broadcast", ("x", {"a": {"__type__": "x", "__value__": 1}}), {}, "arguments['a'] has the keys"),
        ("revoke_by_stamped_headers", ({"tenant": {"a": 1}},), {}, "headers['tenant'] takes a list of texts"),
        ("revoke_by_stamped_headers", (["a"],), {}, "headers takes an object"),
        ("query_task", ([1],), {}, "each of ids takes text"),
        ("pool_restart", (), {"reloader": "f"}, "reloader is for callers in the same process"),
        ("hello", ("celery@me", {"x": 1}), {}, "revoked takes a list of texts"),
        ("broadcast", ("rate_limit", {"rate_limit": "nan"}), {}, "call celery_admin.rate_limit for this"),
        ("broadcast", ("x", [1]), {}, "arguments takes an object"),
    ],
)
def test_wrong_arguments(command, args, keywords, says, setup):
    """Arguments that would harm workers, or address more of them than intended, are refused."""
    one = setup()
    error = error_of(one.call(f"celery_admin.{command}", *args, **keywords))
    assert error.error == "celery.error.invalid_arguments"
    assert says in error.args[0]
    assert one.client.control.sent == []


@pytest.mark.parametrize(
    ("replies", "answer"),
    [
        ([{"a": {"ok": 1}}, {"b": {"error": "x"}}], {"a": {"ok": 1}, "b": {"error": "x"}}),
        ([], None),
        (None, None),
        (3, 3),
    ],
)
def test_what_a_command_returns(replies, answer, setup):
    """Replies are a dictionary by worker, as from queries. No reply is ``null``."""
    one = setup()
    called = one.call("celery_admin.enable_events")
    one.client.control.sent[0][4].callback(replies)
    assert result_of(called) == answer


def test_replies_that_wamp_cannot_carry(setup):
    """Replies that are too large are an error for the caller."""
    one = setup()
    called = one.call("celery_admin.active")
    one.client.control.sent[0][4].callback({WORKER: ["x" * 2**21]})
    assert error_of(called).error == "celery.error.result_unencodable"


def test_commands_of_the_application(panel, setup):
    """Commands that the application registers are procedures, with their handler's parameters."""

    @inspect_command()
    def disk(state: Any, path: str = "/", **kwargs: Any) -> int:
        """Free space."""

    @control_command()
    def drain(state: Any, seconds: float) -> None:
        pass

    @control_command(name="not a uri")
    def odd(state: Any) -> None:
        pass

    one = setup()
    one.call("celery_admin.disk", "/var", timeout=3)
    one.call("celery_admin.drain", seconds=5, reply=False)
    assert [call[:3] for call in one.client.control.sent] == [
        ("broadcast", ("disk", {"path": "/var"}), {"reply": True, "timeout": 3}),
        ("broadcast", ("drain", {"seconds": 5}), {"reply": False}),
    ]
    assert "celery_admin.not a uri" not in one.bridge.procedures
    listed = {each["name"]: each for each in result_of(one.call("celery_admin.commands"))}
    assert listed["disk"] == {
        "name": "disk",
        "uri": "celery_admin.disk",
        "signature": "(path='/', *, destination=None, pattern=None, matcher=None, timeout=1.0, limit=None)",
        "doc": "Free space.",
    }
    assert listed["drain"]["doc"] is None


@pytest.mark.parametrize(
    ("failure", "uri"),
    [
        (BrokerUnavailable("no broker"), "broker_unavailable"),
        (RepliesLost("lost"), "broker_unavailable"),
        (InvalidCall("KeyError: 'x'"), "invalid_arguments"),
    ],
)
def test_commands_that_fail(failure, uri, setup):
    """The library's errors have the same URIs as for tasks, without a task id."""
    one = setup()
    called = one.call("celery_admin.ping")
    one.client.control.sent[0][4].errback(Failure(failure))
    error = error_of(called)
    assert (error.error, error.args, error.kwargs) == (f"celery.error.{uri}", (str(failure),), {})


def test_a_command_does_not_wait_for_ever(setup):
    """It times out, however long workers go on replying, and leaves no timer."""
    one = setup()
    called = one.call("celery_admin.ping")
    one.clock.advance(121)
    assert error_of(called).error == "celery.error.timeout"
    assert one.clock.getDelayedCalls() == []


def test_too_many_commands(setup):
    """Past the limit a command is refused at once. A reply, or a cancelled call, makes room."""
    one = setup()
    calls = [one.call("celery_admin.ping") for _ in range(MAX_WAITING)]
    assert error_of(one.call("celery_admin.stats")).error == "celery.error.overloaded"
    calls[0].cancel()
    error_of(calls[0])
    one.client.control.sent[1][4].callback(None)
    assert not one.call("celery_admin.stats").called
    assert not one.call("celery_admin.stats").called
    assert error_of(one.call("celery_admin.stats")).error == "celery.error.overloaded"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://joe:s3cret@host/v", "amqp://joe:********@host/v"),
        ("redis://:s3cr:et/@host:1;redis://:s3cret@b", "redis://:********@host:1;redis://:********@b"),
        ("url: 'http://joe:s3cret@host', port: 80", "url: 'http://joe:********@host', port: 80"),
        ("http://host:80/path", "http://host:80/path"),
    ],
)
@pytest.mark.parametrize("command", ["conf", "report", "stats"])
def test_passwords_are_masked(command, text, shown, setup):
    """A password in a URL is masked, whatever its setting is called."""
    one = setup()
    called = one.call(f"celery_admin.{command}")
    one.client.control.sent[0][4].callback({WORKER: {"service": [text], "n": 1}})
    assert result_of(called) == {WORKER: {"service": [shown], "n": 1}}


def test_every_command_is_documented(setup):
    """The guide describes each procedure for operators."""
    guide = (ROOT / "docs" / "bridge.md").read_text()
    assert {name for name in names(setup) if f"`{name}(" not in guide} == {"commands"}
    assert "`celery_admin.commands`" in guide
