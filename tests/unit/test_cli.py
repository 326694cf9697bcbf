"""The command line."""

from __future__ import annotations

from typing import Any

import pytest

from twistedcelery import cli
from twistedcelery.demo import command


def test_demo_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """``demo`` hands its options on, and its status back."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(command, "run", lambda **options: given.update(options) or 7)
    assert cli.main(["demo", "--broker", "amqp://", "--backend", "rpc://", "--port", "8000"]) == 7
    assert given == {"broker": "amqp://", "backend": "rpc://", "port": 8000}


def test_demo_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without options, ``demo`` needs no server and takes port 8080."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(command, "run", lambda **options: given.update(options) or 0)
    assert cli.main(["demo"]) == 0
    assert given == {"broker": None, "backend": None, "port": 8080}


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "²"])
def test_port_that_is_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no port is refused before anything starts."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", f"--port={port}"])
    assert f"{port!r} is no port: give 1 to 65535" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` names the package."""
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("twistedcelery ")


def test_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command it says which there are."""
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "COMMAND" in capsys.readouterr().err
