"""Provides the master that Redis Sentinel names as an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import implementer

from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable
from twistedcelery.transports.connection import Refused, Server
from twistedcelery.transports.redis.link import open_link

__all__ = ["MasterEndpoint"]


@implementer(IStreamClientEndpoint)
class MasterEndpoint:
    """Asks one sentinel after another for the master, at each attempt to connect.

    :param sentinels: where they are
    :param name: what they call the master
    :param accepts: whether a sentinel's state of the master, as redis-py has it, is good enough
    :param locate: makes the endpoint of a host and a port
    :param timeout: seconds that one sentinel may take
    """

    def __init__(
        self,
        sentinels: Sequence[Server],
        name: str,
        accepts: Callable[[Mapping[str, Any]], bool],
        locate: Callable[[str, int], Any],
        reactor: Any,
        timeout: float,
    ) -> None:
        self._sentinels = sentinels
        self._name = name
        self._accepts = accepts
        self._locate = locate
        self._reactor = reactor
        self._timeout = timeout

    def connect(self, protocolFactory: Any) -> Deferred[Any]:  # noqa: N803  # the interface's name
        """As `twisted.internet.interfaces.IStreamClientEndpoint.connect`.

        It fails with `BrokerUnavailable` when no sentinel knows a master.
        """
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: Any) -> Any:
        problems = []
        refused = False
        for sentinel in self._sentinels:
            try:
                host, port = await self._ask(sentinel).addTimeout(self._timeout, self._reactor)
            except (BrokerUnavailable, Refused, defer.TimeoutError) as error:
                refused = refused or isinstance(error, BrokerAccessRefused)
                problems.append(f"{sentinel.address}: {str(error) or 'no answer'}")
                continue
            return await self._locate(host, port).connect(factory)
        error_class = BrokerAccessRefused if refused and len(problems) == 1 else BrokerUnavailable
        raise error_class(f"no sentinel knows a master {self._name!r} ({'; '.join(problems)})")

    def _ask(self, sentinel: Server) -> Deferred[tuple[str, int]]:
        return Deferred.fromCoroutine(self._asked(sentinel))

    async def _asked(self, sentinel: Server) -> tuple[str, int]:
        link = await open_link(sentinel.endpoint, sentinel.parameters, self._reactor)
        try:
            masters = await link.ask(("SENTINEL", "MASTERS"))
        finally:
            link.close()
        for listed in masters:
            fields = [each.decode("utf-8", "replace") for each in listed]
            state = dict(zip(fields[::2], fields[1::2], strict=True))
            if state["name"] != self._name:
                continue
            if not self._accepts(_as_redis_py(state)):
                raise BrokerUnavailable(f"it is {state['flags']}, with {_OTHERS} {state[_OTHERS]}")
            return state["ip"], int(state["port"])
        raise BrokerUnavailable("it is not known there")


_OTHERS = "num-other-sentinels"


def _as_redis_py(state: Mapping[str, str]) -> dict[str, Any]:
    """As much of a master's state as redis-py's ``Sentinel.check_master_state`` looks at."""
    flags = state["flags"].split(",")
    return {
        "is_master": "master" in flags,
        "is_sdown": "s_down" in flags,
        "is_odown": "o_down" in flags,
        _OTHERS: int(state[_OTHERS]),
    }
