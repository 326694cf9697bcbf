"""The bridge's configuration, and the errors of a wrong one."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from twistedcelery import ConfigurationError
from twistedcelery.wamp import config
from twistedcelery.wamp.config import Configuration, Trigger
from twistedcelery.wamp.tasks.exposed import load_application

TRIGGER = {"topic": "com.example.uploaded", "task": "app.add"}


def test_the_defaults():
    """Every key but the application has its documented default."""
    assert Configuration.parse({"app": "my_app"}, {}) == Configuration(
        app="my_app",
        prefix="celery",
        include=("*",),
        exclude=("celery.*",),
        discover="app",
        invoke="roundrobin",
        max_in_flight=1000,
        max_in_flight_per_caller=100,
        max_in_flight_age=3600.0,
        max_countdown=900.0,
        max_expires=86400.0,
        expires=(),
        max_call_bytes=2**22,
        max_items=20_000,
        max_reply_bytes=2**24,
        drain_timeout=10.0,
        publish_timeout=10.0,
        call_timeout=None,
        on_caller_gone="revoke",
        terminate=False,
        events=frozenset({"progress", "succeeded", "failed", "revoked", "retried"}),
        foreign_events=True,
        worker_events=True,
        enable_events=False,
        retain_events=False,
        publish_arguments=False,
        publish_results=False,
        tracebacks=False,
        event_audience="all",
        task_access="all",
        allow_options=frozenset({"countdown", "eta", "expires", "priority", "time_limit", "soft_time_limit"}),
        triggers=(),
    )


def test_every_key_is_checked():
    """Each setting has a key, and each key has a check."""
    assert set(config._CHECKS) == {field.name for field in fields(Configuration)}


def test_the_application_from_the_environment():
    """``TWISTEDCELERY_APP`` names the application if the configuration does not."""
    environ = {"TWISTEDCELERY_APP": "from_environment"}
    assert Configuration.parse({}, environ).app == "from_environment"
    assert Configuration.parse({"app": "my_app"}, environ).app == "my_app"
    assert Configuration.parse(None, environ).app == "from_environment"


def test_no_application_at_all(monkeypatch):
    """With tasks from workers only, Celery's own environment variables are enough."""
    environ = {"CELERY_BROKER_URL": "amqp://joe@host//"}
    assert Configuration.parse({"discover": "workers"}, environ).app is None
    assert Configuration.parse({"discover": "workers", "app": "my_app"}, environ).app == "my_app"
    for extra in ({}, {"discover": "both"}):
        with pytest.raises(ConfigurationError, match="key 'app' is missing"):
            Configuration.parse(extra, environ)
    with pytest.raises(ConfigurationError, match="CELERY_BROKER_URL in the environment does as well"):
        Configuration.parse({"discover": "workers"}, {})
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://joe@host//")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://host/3")
    conf = load_application(None).conf
    assert (conf.broker_url, conf.result_backend) == ("amqp://joe@host//", "redis://host/3")


def test_what_crossbar_adds_is_no_mistake():
    """Crossbar adds its own directory to every component's configuration."""
    assert Configuration.parse({"app": "my_app", "cbdir": "/node"}, {}).app == "my_app"


def test_events():
    """``true`` means every event, ``false`` none."""
    parse = Configuration.parse
    assert parse({"app": "a", "events": False}, {}).events == frozenset()
    assert parse({"app": "a", "events": []}, {}).events == frozenset()
    assert parse({"app": "a", "events": True}, {}).events == {
        *("sent", "received", "started", "progress", "retried"),
        *("succeeded", "failed", "revoked", "rejected"),
    }


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({}, "key 'app' is missing"),
        ({"app": ""}, "key 'app': found '', accepted is text"),
        (
            {"publsh_timeout": 3},
            "unknown configuration key 'publsh_timeout'; did you mean 'publish_timeout'?",
        ),
        ({"zzz": 3}, "accepted are: app, prefix, include"),
        ({"prefix": "my celery"}, "key 'prefix': found 'my celery', accepted is a WAMP URI"),
        ({"prefix": "wamp.celery"}, "not below 'wamp' or 'crossbar'"),
        ({"include": "my_app.*"}, "accepted is a list of glob patterns"),
        ({"discover": "apps"}, "one of 'app', 'workers', 'both'; did you mean 'app'?"),
        ({"discover": ["app"]}, "one of 'app', 'workers', 'both'"),
        ({"invoke": "round"}, "one of 'single', 'first', 'last', 'roundrobin', 'random'"),
        ({"max_in_flight": 0}, "found 0, accepted is a whole number of at least 1"),
        ({"max_in_flight": True}, "found True, accepted is a whole number"),
        ({"publish_timeout": "10"}, "found '10', accepted is a number of seconds"),
        ({"publish_timeout": None}, "found None, accepted is a number of seconds"),
        ({"call_timeout": -1}, "found -1, accepted is a number of seconds above 0"),
        ({"call_timeout": float("inf")}, "found inf"),
        ({"on_caller_gone": "revok"}, "did you mean 'revoke'?"),
        ({"terminate": "yes"}, "found 'yes', accepted is true or false"),
        ({"events": ["succeded"]}, "did you mean 'succeeded'?"),
        ({"foreign_events": "no"}, "key 'foreign_events': found 'no', accepted is true or false"),
        ({"events": "all"}, "accepted is true, false, or a list of: sent, received"),
        ({"max_items": 0}, "found 0, accepted is a whole number of at least 1"),
        ({"max_in_flight_per_caller": 0}, "found 0, accepted is a whole number of at least 1"),
        ({"max_in_flight_age": 0}, "found 0, accepted is a number of seconds above 0"),
        ({"max_countdown": "1h"}, "found '1h', accepted is a number of seconds above 0"),
        ({"max_expires": -1}, "found -1, accepted is a number of seconds above 0"),
        ({"expires": "1h"}, "found '1h', accepted is a number of seconds above 0"),
        ({"expires": {"my_app.*": 0}}, "found 0, accepted is a number of seconds above 0"),
        ({"expires": {"": 5}}, "found '', accepted is text that is not empty"),
        ({"task_access": "me"}, "one of 'all', 'caller'"),
        ({"event_audience": "me"}, "one of 'all', 'caller'"),
        ({"allow_options": ["que"]}, "did you mean 'queue'?"),
        ({"allow_options": [["queue"]]}, "found ['queue']"),
        ({"events": [{}]}, "found {}"),
        ({"invoke": []}, "found []"),
        ({"triggers": {}}, "key 'triggers': found {}, accepted is a list of objects"),
        ({"triggers": ["x"]}, "key 'triggers[0]': found 'x', accepted is an object with the keys topic"),
        ({"triggers": [{"topic": "x"}]}, "key 'triggers[0].task': found None, accepted is text"),
        ({"triggers": [{"task": "x", "topic": ""}]}, "key 'triggers[0].topic': found ''"),
        ({"triggers": [TRIGGER, {**TRIGGER, "tsk": 1}]}, "key 'triggers[1]': found 'tsk', accepted is only"),
        ({"triggers": [{**TRIGGER, "match": "glob"}]}, "one of 'exact', 'prefix', 'wildcard'"),
        ({"triggers": [{**TRIGGER, "match": []}]}, "key 'triggers[0].match': found []"),
        (
            {"triggers": [{**TRIGGER, "topic": "a..b"}]},
            "topic for the match 'exact'; it has an empty component",
        ),
        ({"triggers": [{**TRIGGER, "topic": "a b", "match": "wildcard"}]}, "it contains white space"),
        (
            {"triggers": [{**TRIGGER, "options": {"que": "x"}}]},
            "'que' is not allowed here; allowed: compression",
        ),
        ({"triggers": [{**TRIGGER, "options": {"countdown": "x"}}]}, "countdown takes a number of seconds"),
        ({"triggers": [{**TRIGGER, "options": []}]}, "key 'triggers[0].options': found []"),
    ],
)
def test_mistakes(extra, says):
    """The error names the key, what was found and what is accepted."""
    with pytest.raises(ConfigurationError) as refused:
        Configuration.parse(extra if extra == {} else {"app": "my_app", **extra}, {})
    assert says in str(refused.value)


def test_triggers():
    """A trigger's topic may be a pattern, and its options are those of ``send_task``."""
    triggers = [
        TRIGGER,
        {**TRIGGER, "topic": "com.", "match": "prefix", "options": {"queue": "slow", "countdown": None}},
        {**TRIGGER, "topic": "com..uploaded", "match": "wildcard"},
    ]
    assert Configuration.parse({"app": "my_app", "triggers": triggers}, {}).triggers == (
        Trigger("com.example.uploaded", "app.add"),
        Trigger("com.", "app.add", "prefix", {"queue": "slow"}),
        Trigger("com..uploaded", "app.add", "wildcard"),
    )


def test_values_of_unknown_keys_are_not_shown():
    """A secret under an unknown key does not reach the log."""
    with pytest.raises(ConfigurationError) as refused:
        Configuration.parse({"app": "my_app", "ticket": "s3cret"}, {})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (None, "cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("app = 3", "which is a int; accepted is a Celery application"),
    ],
)
def test_applications_that_are_none(source: str | None, says: str, tmp_path: Path, monkeypatch) -> None:
    """An application that fails to import is an error of the key ``app``."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"module_{abs(hash(says))}"
    if source is not None:
        (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(ConfigurationError) as refused:
        load_application(name)
    assert "key 'app'" in str(refused.value)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import json\n\njson.loads('[')", "broken_app.py, line 3: json.loads('['))"),
        ("import nosuch.thing", "broken_app.py, line 1: import nosuch.thing)"),
        ("def (", "broken_app.py, line 1)"),
        # Celery imports it.
        ("from celery import Celery\napp = Celery(include=['nosuch'])", "it was looked for in {here}, "),
        (None, "No module named 'broken_app'; it was looked for in {here}, "),
    ],
)
def test_an_application_that_cannot_be_imported(
    source: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the line that failed, or the folders in which the module was looked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_app", raising=False)
    if source is not None:
        (tmp_path / "broken_app.py").write_text(source)
    with pytest.raises(ConfigurationError) as refused:
        load_application("broken_app")
    assert says.format(here=tmp_path) in str(refused.value).replace(f"{tmp_path}/broken", "broken")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("broker='ampq://h'", "broker_url has the unknown scheme 'ampq'; did you mean 'amqp'?"),
        ("backend='rdis://h'", "result_backend has the unknown scheme 'rdis'; did you mean 'redis'?"),
    ],
)
def test_an_application_with_a_misspelt_scheme(
    settings: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before the bridge starts."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"misspelt_{settings[:6]}"
    (tmp_path / f"{name}.py").write_text(f"from celery import Celery\napp = Celery({settings})")
    with pytest.raises(ConfigurationError) as refused:
        load_application(name)
    assert str(refused.value) == says
