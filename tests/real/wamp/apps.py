"""Where a bridge in the tests' own process finds its Celery application."""

from __future__ import annotations

from typing import Any

#: The application of the test that runs.
current: Any = None
