"""A WAMP caller that makes many calls at once, and reads the answers as they come. Run as a program.

    python -m tests.support.callflood ROUTER_URL PROCEDURE COUNT

It prints how many calls ended in each way: ``ok``, or the URI of the error.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from autobahn.twisted.wamp import ApplicationRunner, ApplicationSession
from autobahn.wamp.types import ComponentConfig
from twisted.internet import reactor
from twisted.internet.defer import DeferredList


class _Flood(ApplicationSession):
    def __init__(self, config: ComponentConfig, procedure: str, count: int) -> None:
        super().__init__(config)
        self._procedure = procedure
        self._count = count

    async def onJoin(self, details: Any) -> None:
        calls = [self.call(self._procedure, 1, number) for number in range(self._count)]
        print("sent", file=sys.__stdout__, flush=True)
        ended = await DeferredList(calls, consumeErrors=True)
        counts = Counter("ok" if succeeded else outcome.value.error for succeeded, outcome in ended)
        print(json.dumps(counts), file=sys.__stdout__, flush=True)
        self.leave()

    def onDisconnect(self) -> None:
        super().onDisconnect()
        reactor.stop()


if __name__ == "__main__":
    url, procedure, count = sys.argv[1:]
    ApplicationRunner(url, "realm1").run(lambda config: _Flood(config, procedure, int(count)))
