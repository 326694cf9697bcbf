"""A bridge in a process of its own that tells what it holds.

    python -m tests.real.faults.bridge URL CONFIG REPORT

runs ``twistedcelery bridge`` with a configuration; at each SIGUSR1 it writes a `Report` to a file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.real.faults.measuring import Report, Watch
from tests.real.wamp.nodes import TICKET
from tests.support.process import SOURCES, Process
from tests.support.taskapp import BACKEND, BROKER

__all__ = ["BridgeProcess"]


class BridgeProcess:
    """The bridge, as the tests see it. Its methods block.

    :param directory: where its configuration, its log and its reports go
    :param broker: the broker's URL; results come over ``rpc://``
    :param extra: the bridge's configuration
    """

    def __init__(self, directory: Path, url: str, broker: str, app: str, extra: Mapping[str, Any]) -> None:
        self._report = directory / "report.json"
        config = directory / "bridge.json"
        config.write_text(json.dumps({"app": app, **extra}))
        self.process = Process(
            [sys.executable, "-m", "tests.real.faults.bridge", url, str(config), str(self._report)],
            directory=directory,
            name="bridge",
            env={
                BROKER: broker,
                BACKEND: "rpc://",
                "PYTHONPATH": os.pathsep.join(SOURCES),
                "TWISTEDCELERY_TICKET": TICKET,
            },
        )

    def report(self) -> Report:
        """Ask it what it holds. The first report is what later ones are compared with."""
        self._report.unlink(missing_ok=True)
        self.process.signal(signal.SIGUSR1)
        self.process.wait_until(self._report.exists, timeout=60, what="it reports")
        return Report(**json.loads(self._report.read_text()))


def main(url: str, config: str, report: str) -> int:
    """Run the bridge until SIGTERM."""
    from twisted.internet import reactor

    from twistedcelery.wamp import bridge
    from twistedcelery.wamp.process.command import run

    watch = Watch(bridge._bridges.values)

    def write() -> None:
        # Renamed, so that nobody reads a half of it.
        unfinished = Path(f"{report}.tmp")
        unfinished.write_text(json.dumps(asdict(watch.report())))
        unfinished.rename(report)

    signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(write))
    return run(url=url, realm="realm1", config=Path(config), settings=[])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
