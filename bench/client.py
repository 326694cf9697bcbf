"""The clients that are compared, each run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

from bench.measurement import Measurement
from bench.workload import Workload
from tests.support.process import SOURCES

__all__ = ["BASELINE", "CLIENTS", "SUBJECT", "Client"]


@dataclass(frozen=True)
class Client:
    """A way to call a task.

    :ivar module: in `bench.clients`; its function ``run(workload)`` returns the `Measurement`
    """

    title: str
    module: str

    def measure(self, workload: Workload, timeout: float = 120.0) -> Measurement:
        """Run it once, in a fresh process, so that nobody else's CPU is counted.

        :param timeout: seconds
        :raises subprocess.SubprocessError: when it fails or takes too long
        """
        child = subprocess.run(
            [sys.executable, "-m", "bench.child", self.module, json.dumps(asdict(workload))],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)},
            stdout=subprocess.PIPE,
            timeout=timeout,
            check=True,
        )
        return Measurement(**json.loads(child.stdout))


#: What others are measured by, what is measured, and the least that anything on pika can cost.
BASELINE = Client("Celery delay(), get()", "celery_get")
SUBJECT = Client("TwistedCelery.send_task", "send_task")
FLOOR = Client("pika echo, constant message", "pika_echo")

#: In the order in which they run in each round.
CLIENTS = (BASELINE, SUBJECT, FLOOR)
