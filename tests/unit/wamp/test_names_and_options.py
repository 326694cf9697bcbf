"""URIs, ``celery_options``, callers, and the memory for submitted results."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
from autobahn.wamp.message import check_or_raise_uri
from hypothesis import given
from hypothesis import strategies as st

from twistedcelery.wamp.callers.known_tasks import EndedTask, EndedTasks
from twistedcelery.wamp.invocation import Caller
from twistedcelery.wamp.options import (
    DEFAULT_OPTIONS,
    KNOWN_OPTIONS,
    NotAllowed,
    OptionError,
    parse_options,
)
from twistedcelery.wamp.uris import Uris, why_not_a_uri
from twistedcelery.wamp.values import Normalised

uris = Uris("com.example.celery")


def test_uris():
    """All spaces begin with the prefix, and an id loses its dashes."""
    assert uris.task("my_app.add") == "com.example.celery.my_app.add"
    assert uris.event("my_app.add", "failed") == "com.example.celery.my_app.add.failed"
    assert uris.api("submit") == "com.example.celery_api.submit"
    assert uris.error("timeout") == "com.example.celery.error.timeout"
    task_id = uuid.uuid4()
    assert uris.task_events(str(task_id)) == f"com.example.celery_task.{task_id.hex}"
    assert uris.task_events("an id of one's own") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.b-c.D", None),
        ("über.größe", None),
        ("", "empty"),
        ("a b", "white space"),
        ("a\n", "white space"),
        ("a#b", "'#'"),
        ("a..b", "empty component"),
        (".a", "empty component"),
        ("a.", "empty component"),
        ("a\ud800", "Unicode"),
    ],
)
def test_what_is_no_uri(text, reason):
    """The reason says what to change."""
    said = why_not_a_uri(text)
    assert said is None if reason is None else reason in said


@given(st.text(alphabet=st.sampled_from("ab.# \n\t_-é")))
def test_autobahn_takes_what_is_accepted(text):
    """Every accepted URI is valid for Autobahn and the router."""
    if why_not_a_uri(text) is None:
        assert check_or_raise_uri(text) == text


@pytest.mark.parametrize(
    ("options", "parsed"),
    [
        (None, {}),
        ({}, {}),
        ({"countdown": 1.5, "priority": 0, "eta": None}, {"countdown": 1.5, "priority": 0}),
        ({"eta": "2030-01-01T00:00:00+00:00"}, {"eta": dt.datetime(2030, 1, 1, tzinfo=dt.UTC)}),
        ({"expires": 60}, {"expires": 60}),
        ({"expires": "2030-01-01T00:00:00Z"}, {"expires": dt.datetime(2030, 1, 1, tzinfo=dt.UTC)}),
        ({"queue": "high", "headers": {"a": 1}}, {"queue": "high", "headers": {"a": 1}}),
    ],
)
def test_options(options, parsed):
    """Plain values become what Celery accepts."""
    assert parse_options(options, KNOWN_OPTIONS) == parsed


@pytest.mark.parametrize(
    "options",
    [
        7,
        ["countdown"],
        {"countdown": -1},
        {"countdown": True},
        {"countdown": float("nan")},
        {"countdown": "1"},
        {"eta": 5},
        {"eta": "soon"},
        {"expires": [1]},
        {"priority": 256},
        {"priority": 1.5},
        {"queue": ""},
        {"queue": "x" * 256},
        {"ignore_result": 1},
        {"headers": [1]},
    ],
)
def test_wrong_options(options):
    """A value that Celery would fail on later is refused at once."""
    with pytest.raises(OptionError) as refused:
        parse_options(options, KNOWN_OPTIONS)
    assert not isinstance(refused.value, NotAllowed)


@pytest.mark.parametrize("key", ["queue", "task_id", "producer", "link"])
def test_options_that_are_not_allowed(key):
    """The error names the option and the allowed ones."""
    with pytest.raises(NotAllowed, match=f"'{key}' is not allowed here; allowed: countdown, eta"):
        parse_options({key: "x"}, DEFAULT_OPTIONS)


def test_ended_tasks_are_forgotten_within_bounds():
    """The oldest go first, when there are too many or they take too many bytes."""
    ended = EndedTasks(max_count=3, max_size=100)
    for number in range(4):
        ended.add(str(number), EndedTask(Caller(), "SUCCESS", Normalised(number, 10)))
    assert ended.find("0") is None
    assert ended.find("1").outcome.value == 1
    ended.add("large", EndedTask(Caller(), "SUCCESS", Normalised("large", 85)))
    assert [ended.find(key).outcome.value for key in ("3", "large")] == [3, "large"]
    assert ended.find("2") is None
    ended.add("too large", EndedTask(Caller(), "SUCCESS", Normalised("too large", 101)))
    assert [ended.find(key) for key in ("3", "large", "too large")] == [None] * 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Caller(1), Caller(1), True),
        (Caller(1), Caller(2), False),
        (Caller(1, "joe", "user"), Caller(2, "joe", "user"), True),
        (Caller(1, "joe", "user"), Caller(2, "joe", "guest"), False),
        (Caller(1, "joe", "user"), Caller(2, "Joe", "user"), False),
        (Caller(), Caller(), False),
    ],
)
def test_who_is_the_same_caller(one, other, same):
    """The same session, or the same authenticated identity. An undisclosed caller never matches."""
    assert one.is_same(other) is same
    assert other.is_same(one) is same


def test_topics_of_a_bridge():
    """Exactly the URIs in one of the bridge's own spaces belong to it."""
    uris = Uris("celery")
    assert all(
        map(uris.owns, ("celery", "celery.", "celery.a", "celery_task.0a", "celery_admin.x", "celery_api.x"))
    )
    assert not any(map(uris.owns, ("", "celer", "celeryx", "celery_", "celery_tasks.x", "com.celery.x")))
