"""A program that makes its first 100 calls, and tells how late they made its reactor.

It prints one JSON object: ``worst``, as of `tests.support.lateness.Lateness`; ``longest``, the seconds
until the last call ended; and ``errors``, the names and texts that the calls failed with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred

from tests.support.lateness import Lateness
from tests.support.taskapp import create_app
from twistedcelery import TaskDeferred, TwistedCelery

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("broker")
    parser.add_argument("backend")
    parser.add_argument("--transport", default="auto")
    parser.add_argument("--timeout", type=float, default=0.5, help="the client's publish_timeout")
    parser.add_argument("--signatures", action="store_true", help="instead of tasks by name")
    task.react(_run, (parser.parse_args(arguments),))


def _run(reactor: Any, options: argparse.Namespace) -> Deferred[None]:
    return ensureDeferred(_call(reactor, options))


async def _call(reactor: Any, options: argparse.Namespace) -> None:
    app = create_app(options.broker, options.backend, broker_connection_timeout=options.timeout / 2)
    tx_app = TwistedCelery(app, publish_timeout=options.timeout, transport=options.transport)
    add = app.tasks["taskapp.add"]

    def call() -> TaskDeferred:
        if options.signatures:
            return tx_app.apply_async(add.s(1, 2))
        return tx_app.send_task("taskapp.add", args=(1, 2))

    with Lateness() as lateness:
        begun = reactor.seconds()
        ended = await DeferredList([call() for _ in range(100)], consumeErrors=True)
        longest = reactor.seconds() - begun
    failures = [outcome.value for succeeded, outcome in ended if not succeeded]
    print(  # noqa: T201  # it is what the program is for
        json.dumps(
            {
                "worst": lateness.worst,
                "longest": longest,
                "failed": len(failures),
                "errors": sorted({f"{type(error).__name__}: {error}" for error in failures}),
            }
        )
    )
    await tx_app.disconnect()


if __name__ == "__main__":
    main()
