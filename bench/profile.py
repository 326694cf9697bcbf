"""Profiles what a row measures: ``python -m bench.profile ROW``.

py-spy looks at the client, or at the bridge or the router, while the row's contender runs. The file in
``profiles/`` is for https://www.speedscope.app.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.contender import child_command, child_environment
from bench.measurement import CLIENT
from bench.row import Family, Row
from bench.rows import FAMILIES
from bench.servers import Servers
from tests.support.process import python_program

__all__ = ["main"]

#: Samples a second.
_RATE = 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    rows = {row.name: (family, row) for family in FAMILIES for row in family.rows}
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("row", choices=rows, metavar="ROW", help=", ".join(rows))
    parser.add_argument("--calls", type=int, help="instead of ten times the row's own number")
    options = parser.parse_args(arguments)
    family, row = rows[options.row]
    Path("profiles").mkdir(exist_ok=True)
    path = Path("profiles") / f"{row.name}.speedscope.json"
    profile(family, row, options.calls or 10 * family.calls, path)
    print(f"written: {path}")


def profile(family: Family, row: Row, calls: int, path: Path) -> None:
    """Run a row's contender once, and profile it.

    :param path: of the file that is written
    """
    name, process = row.profiled
    contender = family.contender(name)
    spy = [
        python_program("py-spy"),
        "record",
        "--format",
        "speedscope",
        "--rate",
        str(_RATE),
        "--output",
        str(path),
    ]
    with Servers() as servers, servers.scene(family.scene, calls) as usual:
        # In flight at once as many as usual, however many calls are made.
        workload = replace(usual, **{"in_flight": min(family.calls, calls), **contender.workload})
        command = child_command(contender.module, workload)
        if process == CLIENT:
            subprocess.run([*spy, "--", *command], env=child_environment(), check=True)
            return
        # What a node of Crossbar does is in processes below it.
        spying = subprocess.Popen([*spy, "--subprocesses", "--pid", str(workload.processes[process])])
        try:
            subprocess.run(command, env=child_environment(), check=True)
        finally:
            spying.send_signal(signal.SIGINT)
            spying.wait()


if __name__ == "__main__":
    sys.exit(main())
