"""Flower's REST API, ``POST /api/task/apply``. Each thread keeps a connection and waits for its result."""

from __future__ import annotations

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor

from bench.measurement import Measurement, Stopwatch, count_errors
from bench.workload import TASK, Workload, Y

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""
    own = threading.local()

    def call(number: int) -> object:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", workload.options["flower"], timeout=60)
        try:
            own.connection.request(
                "POST",
                f"/api/task/apply/{TASK}",
                json.dumps({"args": [number, Y]}),
                {"Content-Type": "application/json"},
            )
            answer = json.loads(own.connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as problem:
            # It counts as an error; the next call has a new connection.
            own.connection.close()
            return problem
        return answer.get("result")

    with ThreadPoolExecutor(workload.at_once) as pool:
        list(pool.map(call, range(workload.warm_up)))
        stopwatch = Stopwatch(workload)
        values = list(pool.map(call, range(workload.calls)))
        stopwatch.stop()
    return stopwatch.measurement(count_errors(values, lambda number: number + Y))
