"""The package's types, as a user's type checker sees them."""

from __future__ import annotations

import inspect
import runpy
import subprocess
import sys
import typing
import zipfile

import pytest
from celery.app import control as celery_control

import twistedcelery
from tests.support.process import ROOT
from twistedcelery.workers import commands, control


def test_a_user_s_program_has_the_right_types():
    """``mypy --strict`` finds the types that a program expects, and each of a user's mistakes."""
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", "tests/user/mypy.ini"),
            *("--cache-dir", ".mypy_cache/user", "tests/user/program.py", "tests/user/mistakes.py"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.fixture
def declared(monkeypatch):
    """The classes of `twistedcelery.workers.commands` as a type checker sees them."""
    monkeypatch.setattr(typing, "TYPE_CHECKING", True)
    return runpy.run_path(commands.__file__)


def signature(function):
    """Names, kinds and defaults of a function's parameters."""
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


def methods(cls):
    """The public methods of a class."""
    return {name for name, member in vars(cls).items() if not name.startswith("_") and callable(member)}


@pytest.mark.parametrize(
    ("declaration", "own", "celery"),
    [
        ("ControlCommands", twistedcelery.Control, celery_control.Control),
        ("InspectQueries", twistedcelery.Inspect, celery_control.Inspect),
    ],
)
def test_commands_are_typed_as_the_installed_celery_has_them(declared, declaration, own, celery):
    """Type checkers see all commands and queries of the installed Celery, with their parameters."""
    typed = declared[declaration]
    names = methods(celery) - {"Mailbox"}
    assert methods(typed) | methods(own) == names
    for name in names:
        assert signature(getattr(typed, name, None) or getattr(own, name)) == signature(getattr(celery, name))


def test_inspect_is_typed_as_the_installed_celery_has_it():
    """``control.inspect()`` takes what Celery's ``Inspect`` takes."""
    assert signature(control.Inspecting.__call__) == signature(celery_control.Inspect.__init__)


def test_nothing_is_declared_at_run_time():
    """What a new Celery leaves out is not there, whatever type checkers think."""
    assert methods(commands.ControlCommands) | methods(commands.InspectQueries) == set()


def test_a_wheel_says_that_it_is_typed(tmp_path):
    """Without ``py.typed`` in the wheel, users' type checkers would see no types at all."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"),
            *("--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)),
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "twistedcelery/py.typed" in names
    assert "twistedcelery/client.py" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"twistedcelery"}
