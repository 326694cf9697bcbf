"""Results in Celery's format."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["result"]


def result(task_id: str, state: str, value: Any) -> bytes:
    """The body of a result, or of a state on the way to it."""
    meta = {"task_id": task_id, "status": state, "result": value, "traceback": None, "children": []}
    return json.dumps(meta).encode()
