"""Serves the node's ``/call``: a signed HTTP POST becomes a WAMP call.

Crossbar's own web service ``caller`` takes its secret from ``config.json`` only, not from the
environment, and never ends a request whose result contains bytes. So the node builds the same service
from two parts, which share the router's process:

`HttpCaller`
    the session that calls: a router component, whose role in ``config.json`` says what it may call

`resource`
    Crossbar's own web resource on top of that session

Requests are signed as for Crossbar's: see "HTTP Bridge, Caller" in its documentation. Unlike Crossbar's, this
service accepts each signed request once, tells failures by the status, takes any names of keywords, and
cancels the call of a client that hangs up.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp.exception import ApplicationError, InvalidUriError, TransportLost
from autobahn.wamp.message import Call
from autobahn.wamp.types import CallResult, ComponentConfig, SessionDetails
from crossbar.bridge.rest import CallerResource
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred

from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.invocation import KEYWORDS

if TYPE_CHECKING:
    from twisted.python.failure import Failure

__all__ = ["KEY", "VARIABLE", "CallResource", "HttpCaller", "resource"]

#: The ``key`` that a signed request names.
KEY = "twistedcelery"

#: The environment variable with the secret that signs requests.
VARIABLE = "TWISTEDCELERY_CALL_SECRET"

#: Bytes of a request, at most. Crossbar accepts no larger limit.
_BODY_LIMIT = 1024 * 1024

#: Seconds that the clocks of caller and node may differ.
_CLOCK_TOLERANCE = 300

#: The HTTP status of an error: by its URI, or by what follows ``.error.`` in it, as the bridge's prefix is
#: configurable. Any other error of a procedure is `_OTHER_ERROR`.
_STATUS: Mapping[str, int] = {
    "invalid_arguments": 400,
    "not_allowed": 403,
    "unknown_task": 404,
    "revoked": 409,
    "task_failed": 500,
    "result_unencodable": 500,
    "worker_lost": 502,
    "result_lost": 502,
    "broker_unavailable": 503,
    "overloaded": 503,
    "timeout": 504,
    ApplicationError.INVALID_URI: 400,
    ApplicationError.INVALID_ARGUMENT: 400,
    ApplicationError.NOT_AUTHORIZED: 403,
    ApplicationError.NO_SUCH_PROCEDURE: 404,
    # The bridge is gone.
    ApplicationError.CANCELED: 503,
}
_OTHER_ERROR = 500


class HttpCaller(ApplicationSession):
    """Calls procedures for ``/call``.

    It starts before the router listens, and keeps the node from starting without a secret: Crossbar
    itself accepts an unset or empty variable as a ticket, and anybody can present an empty ticket.

    :cvar current: the process's session, once it has joined
    :param config: ``extra["secrets"]`` names the environment variables that must hold a secret;
        ``extra["on_caller_gone"]`` is ``"revoke"``, the default, or ``"keep"``, as of the bridge
    :raise ConfigurationError: if one of them does not
    """

    # Crossbar passes only ``extra`` to a web resource, so `resource` finds the session here. Crossbar starts
    # a router's components before its transports.
    current: ClassVar[HttpCaller | None] = None

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        for variable in config.extra["secrets"]:
            secret(variable)

    @property
    def cancels(self) -> bool:
        """Whether a client that hangs up cancels its call."""
        return bool(self.config.extra.get("on_caller_gone", "revoke") == "revoke")

    def onConnect(self) -> None:
        """Prepare the transport, and join."""
        transport: Any = self.transport
        send = transport.send

        def send_with_keywords(message: Any) -> None:
            if isinstance(message, Call) and message.kwargs:
                message.kwargs = message.kwargs[KEYWORDS]
            send(message)

        # Autobahn passes keywords through functions of its own, where some names would clash.
        transport.send = send_with_keywords
        super().onConnect()

    def onJoin(self, details: SessionDetails) -> None:
        HttpCaller.current = self

    def request(self, procedure: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Deferred[Any]:
        """Call a procedure, with keywords of any names.

        :return: as of a session's ``call``; cancelling it cancels the call
        """
        keywords = {KEYWORDS: kwargs} if kwargs else {}
        return maybeDeferred(self.call, procedure, *args, **keywords)


class CallResource(CallerResource):
    """Crossbar's web resource, on an `HttpCaller`.

    :param options: as Crossbar's
    :param wall_clock: seconds since the epoch
    """

    def __init__(
        self, options: dict[str, Any], session: HttpCaller, wall_clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(options, session)
        self._caller = session
        self._used = _Used(wall_clock)

    def _process(self, request: Any, event: dict[str, Any]) -> bytes | Deferred[None]:
        """Answer a request whose signature and time are right."""
        procedure, args, kwargs = event.get("procedure"), event.get("args"), event.get("kwargs")
        if not self._used.add(request.args[b"signature"][0]):
            return _refuse(request, 401, "this signed request was used already: sign each with a new nonce")
        if not isinstance(procedure, str):
            return _refuse(request, 400, "'procedure' must be text")
        if not isinstance(args, list | None) or not isinstance(kwargs, dict | None):
            return _refuse(request, 400, "'args' must be a list, and 'kwargs' an object")
        if not _is_unicode(event):
            return _refuse(request, 400, "text with lone surrogates, which is no Unicode")
        return self._call(request, procedure, args or [], kwargs or {})

    def _call(self, request: Any, procedure: str, args: list[Any], kwargs: dict[str, Any]) -> Deferred[None]:
        # Crossbar finishes the request when it fires.
        answered: Deferred[None] = Deferred()
        calling = self._caller.request(procedure, args, kwargs)

        def hung_up(_: Failure) -> None:
            answered.addErrback(lambda failure: failure.trap(CancelledError) and None)
            answered.cancel()
            if self._caller.cancels:
                calling.cancel()

        def answer(status_and_body: tuple[int, bytes]) -> None:
            if answered.called:
                # Nobody is there any more.
                return
            status, body = status_and_body
            request.setResponseCode(status)
            request.write(body)
            answered.callback(None)

        request.notifyFinish().addErrback(hung_up)
        calling.addCallback(_success).addErrback(self._failure).addCallback(answer)
        return answered

    def _failure(self, failure: Failure) -> tuple[int, bytes]:
        """The status and the body that tell a failure."""
        error = failure.value
        if isinstance(error, ApplicationError):
            uri, args, kwargs = error.error, error.args, error.kwargs
        elif isinstance(error, InvalidUriError):
            uri, args, kwargs = ApplicationError.INVALID_URI, (str(error),), {}
        elif isinstance(error, TransportLost | CancelledError):
            uri, args, kwargs = ApplicationError.CANCELED, (), {}
        else:
            self.log.failure(None, failure=failure, log_category="AR500")
            uri, args, kwargs = "wamp.error.runtime_error", (), {}
        status = _STATUS.get(uri) or _STATUS.get(uri.rpartition(".error.")[2], _OTHER_ERROR)
        return status, _to_json({"error": uri, "args": args, "kwargs": kwargs})


def _success(value: Any) -> tuple[int, bytes]:
    if not isinstance(value, CallResult):
        return 200, _to_json({"args": [value]})
    body = {"args": value.results, "kwargs": value.kwresults}
    return 200, _to_json({key: given for key, given in body.items() if given})


class _Used:
    """The signatures that were used, for as long as their time is accepted."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, signature: bytes) -> bool:
        """Note a signature; ``False`` if it was noted before."""
        now = self._wall_clock()
        while self._until and next(iter(self._until.values())) < now:
            self._until.popitem(last=False)
        if signature in self._until:
            return False
        # The request's time may be ahead of ours by the tolerance, and is accepted until it is as far behind.
        self._until[signature] = now + 2 * _CLOCK_TOLERANCE
        return True


def resource(extra: dict[str, Any]) -> CallResource:
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
    return CallResource(options, session)


def secret(variable: str) -> str:
    """The secret in an environment variable.

    :raise ConfigurationError: if the variable is unset or blank
    """
    value = os.environ.get(variable, "")
    if not value.strip():
        state = "empty" if variable in os.environ else "not set"
        raise ConfigurationError(f"the environment variable {variable} is {state}: it must hold a secret")
    return value


def _refuse(request: Any, status: int, reason: str) -> bytes:
    request.setResponseCode(status)
    return _to_json({"error": reason, "args": [], "kwargs": {}})


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, default=_as_text).encode()


def _as_text(value: Any) -> str:
    """What JSON lacks: bytes as WAMP has them there, base64 after a NUL; anything else as Python shows it."""
    return "\0" + base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)
