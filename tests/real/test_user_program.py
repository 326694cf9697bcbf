"""The program whose types are checked in ``tests/unit/test_typing.py`` does what it says."""

from __future__ import annotations

import subprocess
import sys

from tests.support.process import ROOT


def test_a_user_s_program_runs(broker_url, redis_server, worker):
    """Everything that it uses of the client is there and works."""
    url = redis_server.url()
    worker(backend=url)
    ran = subprocess.run(
        [sys.executable, "tests/user/program.py", broker_url, url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "PROGRESS {'current': 1, 'total': 2}" in ran.stdout
    assert "task-succeeded" in ran.stdout
    assert "as asked" in ran.stdout
