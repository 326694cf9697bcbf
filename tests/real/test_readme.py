"""The README's library example, as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.support.process import ROOT


def test_the_library_example_runs_as_printed(broker_url, worker, tmp_path):
    """It prints the task's result, and the process ends by itself."""
    worker(app="my_app", env={"CELERY_BROKER_URL": broker_url, "CELERY_RESULT_BACKEND": "rpc://"})
    readme = (ROOT / "README.md").read_text()
    (example,) = [
        block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "task.react" in block
    ]
    assert "result = yield tx_app.send_task('my_app.tasks.add', args=(2, 3))" in example
    program = tmp_path / "example.py"
    program.write_text(example)
    finished = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(program)],
        # Celery's own variable; it goes before what the program says.
        env={**os.environ, "CELERY_BROKER_URL": broker_url, "PYTHONPATH": str(ROOT / "component")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.stdout == "5\n"
    assert finished.stderr == ""
    assert finished.returncode == 0
