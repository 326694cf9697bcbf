"""Test suites of a user's own project: pytest with Celery's plugin, on asyncio's reactor, and trial."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.process import SOURCES

MYTASKS = """
from celery import shared_task

@shared_task
def divide(x, y):
    return x / y
"""

CONFTEST = """
import pytest

pytest_plugins = ("celery.contrib.pytest",)

@pytest.fixture(scope="session", params=[1, 2])
def celery_config(request):
    return {
        "broker_url": "memory://",
        "broker_transport_options": {"polling_interval": 0.02},
        "result_backend": "cache+memory://",
        "task_protocol": request.param,
    }

@pytest.fixture(scope="session")
def celery_includes():
    return ["mytasks"]

@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"perform_ping_check": False}
"""

TEST_WITH_PYTEST = """
import pytest
import pytest_twisted
from mytasks import divide
from twistedcelery import TwistedCelery

@pytest.fixture
def tx_app(celery_session_app, celery_session_worker):
    client = TwistedCelery(celery_session_app)
    yield client
    pytest_twisted.blockon(client.disconnect())

@pytest_twisted.ensureDeferred
async def test_value(tx_app):
    assert await tx_app.send_task("mytasks.divide", (6, 3)) == 2
    assert await tx_app.apply_async(divide.s(12, 3) | divide.s(2)) == 2

@pytest_twisted.inlineCallbacks
def test_error(tx_app):
    with pytest.raises(ZeroDivisionError):
        yield tx_app.task(divide).delay(1, 0)
"""

TEST_WITH_TRIAL = """
from celery import Celery
from celery.contrib.testing.worker import start_worker
from twisted.trial import unittest
from twistedcelery import TwistedCelery

app = Celery("mine", broker="memory://", backend="cache+memory://")
app.conf.broker_transport_options = {"polling_interval": 0.02}

@app.task(name="divide")
def divide(x, y):
    return x / y

class Tests(unittest.TestCase):
    def setUp(self):
        worker = start_worker(app, perform_ping_check=False)
        worker.__enter__()
        self.addCleanup(worker.__exit__, None, None, None)
        self.tx_app = TwistedCelery(app)
        self.addCleanup(self.tx_app.disconnect)

    def test_error(self):
        return self.assertFailure(self.tx_app.task(divide).delay(1, 0), ZeroDivisionError)

    async def test_canvas(self):
        self.assertEqual(await self.tx_app.apply_async(divide.s(12, 3) | divide.s(2)), 2)
"""


def run(directory: Path, *arguments: str) -> str:
    """Run a program in the user's directory; what it prints, if it succeeds."""
    path = os.pathsep.join([str(directory), *SOURCES])
    finished = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def test_a_suite_with_celerys_plugin(tmp_path):
    """Celery's session fixtures and a shared task, with protocols 1 and 2, beside pytest-twisted."""
    (tmp_path / "mytasks.py").write_text(MYTASKS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_mine.py").write_text(TEST_WITH_PYTEST)
    printed = run(tmp_path, "pytest", "--reactor", "asyncio", "-p", "no:cacheprovider", "-p", "no:xdist")
    assert "4 passed" in printed


def test_a_suite_for_trial(tmp_path):
    """Trial finds the reactor clean after each test."""
    (tmp_path / "test_mine.py").write_text(TEST_WITH_TRIAL)
    assert "successes=2" in run(tmp_path, "twisted.trial", "test_mine")
