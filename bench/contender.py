"""The contenders, each run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from bench.measurement import Measurement
from bench.workload import Workload
from tests.support.process import SOURCES

__all__ = ["Contender", "ContenderFailed", "child_command", "child_environment"]


class ContenderFailed(Exception):
    """A contender could not be measured; the text says why."""


@dataclass(frozen=True)
class Contender:
    """A way to call a task.

    :ivar name: how rows refer to it
    :ivar module: in `bench.clients`; its function ``run(workload)`` returns the `Measurement`
    :ivar needs: the package, as it is imported, that ``bench/requirements.txt`` installs for it
    :ivar workload: fields of `Workload` in which it differs from the other contenders of its family
    """

    name: str
    title: str
    module: str
    needs: str = ""
    workload: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def measure(self, workload: Workload, timeout: float = 600.0) -> Measurement:
        """Run it once, in a fresh process, so that nobody else's CPU is counted.

        :param timeout: seconds
        :raises ContenderFailed: when it fails, takes too long, or is not installed
        """
        if self.needs and find_spec(self.needs) is None:
            raise ContenderFailed(f"{self.needs} is not installed")
        try:
            child = subprocess.run(
                child_command(self.module, replace(workload, **self.workload)),
                env=child_environment(),
                stdout=subprocess.PIPE,
                timeout=timeout,
                check=True,
            )
        except subprocess.TimeoutExpired as expired:
            raise ContenderFailed(f"{self.title} had not finished after {timeout:g} s") from expired
        except subprocess.CalledProcessError as failed:
            raise ContenderFailed(f"{self.title} ended with status {failed.returncode}") from failed
        return Measurement(**json.loads(child.stdout.splitlines()[-1]))


def child_command(module: str, workload: Workload) -> Sequence[str]:
    """The command that runs a module of `bench.clients`."""
    return [sys.executable, "-m", "bench.child", module, json.dumps(asdict(workload))]


def child_environment() -> Mapping[str, str]:
    """The environment of every program of the bench."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
