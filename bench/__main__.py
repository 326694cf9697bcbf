"""The command: measure, print the table, and fail where the cost is above the limit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.client import BASELINE, CLIENTS, SUBJECT
from bench.comparison import Comparison
from bench.servers import ServerMissing, servers
from bench.workload import Workload

#: Exit status: a ratio above the limit, and a machine that cannot run the comparison.
TOO_COSTLY, CANNOT_RUN = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison.

    :return: the exit status
    """
    options = _parser().parse_args(arguments)
    comparison = Comparison(CLIENTS, BASELINE)
    try:
        with servers() as broker:
            workload = Workload(broker, options.calls)
            for number in range(1, options.rounds + 1):
                comparison = comparison.with_round({client: client.measure(workload) for client in CLIENTS})
                print(f"round {number} of {options.rounds}: {comparison.last_round()}", flush=True)
    except ServerMissing as missing:
        print(missing, file=sys.stderr)
        return CANNOT_RUN
    print(f"\nOne worker with --pool=solo, {options.calls} calls in flight over AMQP and rpc://.")
    print(f"Medians of {options.rounds} rounds; CPU is the calling process's, user and system.\n")
    print(comparison.table())
    ratio = comparison.ratio(SUBJECT)
    if ratio > options.max_ratio:
        print(f"\n{SUBJECT.title} takes {ratio:.2f} of Celery's own CPU; {options.max_ratio:.2f} is allowed")
        return TOO_COSTLY
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--calls", type=_positive, default=2000, help="calls in flight at once (%(default)s)")
    parser.add_argument("--rounds", type=_positive, default=5, help="runs of each client (%(default)s)")
    parser.add_argument(
        "--max-ratio",
        type=float,
        default=0.35,
        help="the part of Celery's own CPU per call that send_task may take (%(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
