"""Broker and result backend of the demo, from the environment.

===========================  ============================================================
``CELERY_BROKER_URL``        any broker; default: files under ``MY_APP_DATA``
``CELERY_RESULT_BACKEND``    any result backend; default: files under ``MY_APP_DATA``
``MY_APP_DATA``              directory of the two defaults; default: ``~/.cache/my_app``
===========================  ============================================================

The defaults need no server: a worker and its clients only have to agree on ``MY_APP_DATA``.
"""

import os
from pathlib import Path

from celery import Celery

#: Seconds between two looks at the message directory: kombu's own second is long for a page that waits.
POLLING_INTERVAL = 0.02

data = Path(os.environ.get("MY_APP_DATA") or Path.home() / ".cache" / "my_app").resolve()
broker_url = os.environ.get("CELERY_BROKER_URL") or "filesystem://"
result_backend = os.environ.get("CELERY_RESULT_BACKEND") or f"file://{data / 'results'}"

app = Celery("my_app", broker=broker_url, backend=result_backend, include=["my_app.tasks"])
app.conf.task_track_started = True

if broker_url.startswith("filesystem:"):
    folders = {name: data / name for name in ("messages", "control")}
    app.conf.broker_transport_options = {
        # One directory both ways, so that worker and client take the same settings.
        "data_folder_in": str(folders["messages"]),
        "data_folder_out": str(folders["messages"]),
        "control_folder": str(folders["control"]),
        "polling_interval": POLLING_INTERVAL,
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
if result_backend.startswith("file://"):
    # Celery refuses to start when the directory of a file backend is missing.
    Path(result_backend.removeprefix("file://")).mkdir(parents=True, exist_ok=True, mode=0o700)
