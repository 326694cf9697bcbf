"""The floor of WAMP: a callee that adds at once. ``python -m bench.echo ROUTER_URL``; it prints ``ready``."""

from __future__ import annotations

import sys
from typing import Any

from autobahn.twisted.wamp import ApplicationRunner, ApplicationSession
from autobahn.wamp.serializer import MsgPackSerializer

from tests.real.wamp.nodes import TICKET

__all__ = ["PROCEDURE"]

PROCEDURE = "bench.add"


class _Echo(ApplicationSession):
    def onConnect(self) -> None:
        self.join("realm1", ["ticket"], "bridge")

    def onChallenge(self, challenge: Any) -> str:
        return TICKET

    async def onJoin(self, details: Any) -> None:
        await self.register(lambda x, y: x + y, PROCEDURE)
        print("ready", flush=True)


if __name__ == "__main__":
    ApplicationRunner(sys.argv[1], "realm1", serializers=[MsgPackSerializer()]).run(_Echo)
