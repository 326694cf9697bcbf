"""Serves the node's ``/call``: a signed HTTP POST becomes a WAMP call.

Crossbar's own web service ``caller`` takes its secret from ``config.json`` only, not from the
environment, and never ends a request whose result contains bytes. So the node builds the same service
from two parts, which share the router's process:

`HttpCaller`
    the session that calls: a router component, whose role in ``config.json`` says what it may call

`resource`
    Crossbar's own web resource on top of that session

Requests are signed as for Crossbar's: see "HTTP Bridge, Caller" in its documentation.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any, ClassVar

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp.types import CallResult, ComponentConfig, SessionDetails
from crossbar.bridge.rest import CallerResource
from twisted.internet.defer import Deferred, ensureDeferred

from twistedcelery.errors import ConfigurationError

__all__ = ["KEY", "VARIABLE", "HttpCaller", "resource"]

#: The ``key`` that a signed request names.
KEY = "twistedcelery"

#: The environment variable with the secret that signs requests.
VARIABLE = "TWISTEDCELERY_CALL_SECRET"

#: Bytes of a request, at most. Crossbar accepts no larger limit.
_BODY_LIMIT = 1024 * 1024

#: Seconds that the clocks of caller and node may differ. A signature stays valid for as long.
_CLOCK_TOLERANCE = 300


class HttpCaller(ApplicationSession):
    """Calls procedures for ``/call``.

    It starts before the router listens, and keeps the node from starting without a secret: Crossbar
    itself accepts an unset or empty variable as a ticket, and anybody can present an empty ticket.

    :cvar current: the process's session, once it has joined
    :param config: ``extra["secrets"]`` names the environment variables that must hold a secret
    :raise ConfigurationError: if one of them does not
    """

    # Crossbar passes only ``extra`` to a web resource, so `resource` finds the session here. Crossbar starts
    # a router's components before its transports.
    current: ClassVar[HttpCaller | None] = None

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        for variable in config.extra["secrets"]:
            secret(variable)

    def onJoin(self, details: SessionDetails) -> None:
        HttpCaller.current = self

    def call(self, procedure: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """As a session's ``call``, with a result that JSON carries."""
        return ensureDeferred(self._call(procedure, args, kwargs))

    async def _call(self, procedure: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = await super().call(procedure, *args, **kwargs)
        if isinstance(result, CallResult):
            return CallResult(*_for_json(result.results or ()), **_for_json(result.kwresults or {}))
        return _for_json(result)


def resource(extra: dict[str, Any]) -> CallerResource:
    """Make the web resource of ``/call``. Called by Crossbar.

    :param extra: not used
    :raise ConfigurationError: if the node has no `HttpCaller`, or no secret is set
    """
    session = HttpCaller.current
    if session is None:
        raise ConfigurationError("/call needs the router component twistedcelery.wamp.http_call.HttpCaller")
    options = {
        "key": KEY,
        "secret": secret(VARIABLE),
        "post_body_limit": _BODY_LIMIT,
        "timestamp_delta_limit": _CLOCK_TOLERANCE,
    }
    return CallerResource(options, session)


def secret(variable: str) -> str:
    """The secret in an environment variable.

    :raise ConfigurationError: if the variable is unset or blank
    """
    value = os.environ.get(variable, "")
    if not value.strip():
        state = "empty" if variable in os.environ else "not set"
        raise ConfigurationError(f"the environment variable {variable} is {state}: it must hold a secret")
    return value


def _for_json(value: Any) -> Any:
    """The value, with bytes as WAMP encodes them in JSON: base64 after a NUL."""
    return json.loads(json.dumps(value, default=_bytes_as_text))


def _bytes_as_text(value: bytes) -> str:
    return "\0" + base64.b64encode(value).decode("ascii")
