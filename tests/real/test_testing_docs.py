"""The examples of docs/testing.md, run as they are printed, with no server."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.process import ROOT, SOURCES

EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs/testing.md").read_text(), re.DOTALL | re.MULTILINE
)


def run(directory, *command):
    """Run Python in a user's folder.

    :return: the exit status, and all that was printed
    """
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={"PYTHONPATH": ":".join(map(str, SOURCES)), "PATH": "/usr/bin:/bin", "HOME": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "test_shop.py")


@pytest.fixture
def directory(tmp_path):
    """A project of a user's with all examples."""
    first, conftest, tests, trial = EXAMPLES
    (tmp_path / "first.py").write_text(first)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_shop.py").write_text(tests)
    (tmp_path / "shop_trial.py").write_text(trial)
    return tmp_path


def test_the_first_example_runs(directory):
    """The program at the top needs neither a test runner nor a reactor."""
    assert run(directory, "first.py") == (0, "")


def test_the_example_for_pytest_passes(directory):
    """pytest-twisted runs it, with the plugin's fixture."""
    status, printed = run(directory, *PYTEST)
    assert (status, "1 passed" in printed) == (0, True), printed


def test_the_example_for_trial_passes(directory):
    """All of its tests pass under trial."""
    status, printed = run(directory, "-m", "twisted.trial", "shop_trial")
    assert (status, "PASSED (successes=3)" in printed) == (0, True), printed


def test_the_fixture_sees_a_client_that_is_left_open(directory):
    """A test that does not disconnect its client fails."""
    path = directory / "test_shop.py"
    path.write_text(path.read_text().replace("    await tx_app.disconnect()\n", ""))
    status, printed = run(directory, *PYTEST)
    assert (status, "was not disconnected" in printed) == (1, True), printed
