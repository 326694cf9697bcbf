"""Tasks that report progress: ``taskapp.countdown(n=..., delay=...)``, many at once."""

from __future__ import annotations

import time
from threading import Lock, Thread
from typing import Any

from bench.stub.results import result

__all__ = ["Reporter"]

#: Seconds between two batches of states; what is due meanwhile goes together.
_TURN = 0.005


class Reporter:
    """Runs each task in a thread of its own, which mostly sleeps.

    :param replies: sends states and results
    """

    def __init__(self, replies: Any) -> None:
        self._replies = replies
        self._lock = Lock()

    def begin(self, task_id: str, reply_to: str, n: int, delay: float) -> None:
        """Begin a task: a state each ``delay`` seconds, ``n`` of them, and its result."""
        Thread(target=self._report, args=(task_id, reply_to, n, delay), daemon=True).start()

    def _report(self, task_id: str, reply_to: str, n: int, delay: float) -> None:
        began = time.monotonic()
        sent = 0
        while sent < n:
            due = min(n, int((time.monotonic() - began) / delay))
            states = [{"current": current, "total": n} for current in range(sent + 1, due + 1)]
            self._send([(task_id, reply_to, result(task_id, "PROGRESS", state)) for state in states])
            sent = due
            time.sleep(max(_TURN, min(delay, 0.1)))
        self._send([(task_id, reply_to, result(task_id, "SUCCESS", n))])

    def _send(self, answers: list[tuple[str, str, bytes]]) -> None:
        with self._lock:
            self._replies.send(answers)
