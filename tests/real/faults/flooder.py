"""A WAMP caller in a process of its own that makes many calls at once. Run as a program.

    python -m tests.real.faults.flooder URL COUNT PROCEDURE ARGUMENTS KEYWORDS

It prints how many calls ended in which way, as a JSON object.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from autobahn.wamp.exception import ApplicationError
from twisted.internet import task
from twisted.internet.defer import DeferredList, ensureDeferred
from twisted.python.failure import Failure

from tests.real.wamp.client import connect

#: Calls that are made in one turn of the reactor.
_AT_ONCE = 100


async def flood(
    url: str, count: int, procedure: str, args: list[Any], kwargs: dict[str, Any]
) -> Counter[str]:
    """Make the calls, and wait until all have ended."""
    caller = await connect(url)
    ends: Counter[str] = Counter()

    def ended(outcome: Any) -> None:
        if not isinstance(outcome, Failure):
            ends["result"] += 1
        elif isinstance(outcome.value, ApplicationError):
            ends[outcome.value.error.rpartition(".")[2]] += 1
        else:
            ends[type(outcome.value).__name__] += 1

    calls = []

    def make() -> Any:
        for number in range(count):
            calls.append(caller.call(procedure, *args, **kwargs).addBoth(ended))
            if number % _AT_ONCE == 0:
                yield

    await task.cooperate(make()).whenDone()
    await DeferredList(calls)
    await caller.close()
    return ends


def main(url: str, count: str, procedure: str, args: str, kwargs: str) -> int:
    """Flood, and print how it ended."""

    async def run(_reactor: Any) -> None:
        ends = await flood(url, int(count), procedure, json.loads(args), json.loads(kwargs))
        sys.stdout.write(json.dumps(ends))

    task.react(lambda reactor: ensureDeferred(run(reactor)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
