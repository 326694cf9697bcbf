"""The options of the command ``twistedcelery bridge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from twistedcelery import ConfigurationError, cli
from twistedcelery.wamp.process import command
from twistedcelery.wamp.process.runner import Runner


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options that the command line passes on."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(command, "run", lambda **options: given.update(options) or 7)
    return given


def test_bridge_options(given: dict[str, Any]) -> None:
    """``bridge`` passes its options on, and returns the exit status."""
    arguments = ["--url", "rs://x:1", "--realm", "r", "-A", "app", "--config", "f", "--set", "a=1=2"]
    assert cli.main(["bridge", *arguments]) == 7
    settings = [("app", "app"), ("a", "1=2")]
    assert given == {"url": "rs://x:1", "realm": "r", "config": Path("f"), "settings": settings}


def test_bridge_without_options(given: dict[str, Any]) -> None:
    """By default it connects to the shipped node."""
    assert cli.main(["bridge"]) == 7
    assert given == {"url": "ws://127.0.0.1:8080/ws", "realm": "realm1", "config": None, "settings": []}


def test_a_setting_without_a_value(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """An argument that is no KEY=VALUE is refused before anything starts."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bridge", "--set", "events"])
    assert "'events' is no KEY=VALUE" in capsys.readouterr().err
    assert given == {}


def test_configuration(tmp_path: Path) -> None:
    """Settings override the file, and are parsed as JSON where possible."""
    file = tmp_path / "bridge.json"
    file.write_text('{"app": "one", "events": true}')
    settings = [("app", "two"), ("events", "[]"), ("prefix", "x"), ("max_in_flight", "3")]
    expected = {"app": "two", "events": [], "prefix": "x", "max_in_flight": 3}
    assert command.configuration(file, settings) == expected
    assert command.configuration(None, []) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "cannot be read: .*No such file"), ("{", "cannot be read"), ("[]", "no JSON object")],
)
def test_configuration_that_is_none(text: str | None, says: str, tmp_path: Path) -> None:
    """The error names a file that is missing or wrong."""
    file = tmp_path / "bridge.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=f"bridge.json .*{says}|bridge.json holds {says}"):
        command.configuration(file, [])


@pytest.mark.parametrize("url", ["http://x", "ws://", "ws://x:port", "rs://unix:/tmp/x", "celery"])
def test_urls_of_no_router(url: str) -> None:
    """Such a URL is refused before anything starts."""
    with pytest.raises(ConfigurationError, match="is no URL of a WAMP router"):
        Runner(Clock(), url, "realm1", {})


@pytest.mark.parametrize("url", ["http://me:abc@x", "ws://me:abc/defg@x", "rs://me:abc@unix:/tmp/x"])
def test_the_password_in_a_url_of_no_router(url: str) -> None:
    """It is not shown."""
    with pytest.raises(ConfigurationError, match="is no URL of a WAMP router") as refused:
        Runner(Clock(), url, "realm1", {})
    assert "abc" not in f"{refused.value} {refused.value.__cause__}"
    assert "defg" not in f"{refused.value} {refused.value.__cause__}"
