"""One WAMP call that has reached the bridge, from its arguments to its only answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from autobahn.exception import PayloadExceededError
from autobahn.wamp.exception import ApplicationError, SerializationError, TransportLost
from autobahn.wamp.message import Interrupt
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger

from twistedcelery.wamp.tasks.options import CALLER_HEADERS
from twistedcelery.wamp.values import Unencodable, normalise

if TYPE_CHECKING:
    from autobahn.wamp.types import CallDetails
    from twisted.python.failure import Failure

    from twistedcelery.wamp.errors import CallErrors

__all__ = ["DETAILS", "KEYWORDS", "Caller", "Handler", "Invocation", "OpenInvocations", "SessionView"]

#: The keyword under which Autobahn hands over the call's details.
DETAILS = "details"

#: The keyword under which the session hands over all keywords of the caller, whatever their names.
KEYWORDS = "keywords"

_log = Logger()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called. All are ``None`` unless the router discloses its callers.

    :ivar session: the WAMP session id
    """

    session: int | None = None
    authid: str | None = None
    authrole: str | None = None
    #: The topic of the event, where it was no call but a trigger's event.
    topic: str | None = None

    def headers(self) -> dict[str, Any]:
        """What the task is told, as headers of its message."""
        known = (
            ("session", self.session),
            ("authid", self.authid),
            ("authrole", self.authrole),
            ("topic", self.topic),
        )
        return {f"{CALLER_HEADERS}{name}": value for name, value in known if value is not None}

    def is_same(self, other: Caller) -> bool:
        """Whether both are one and the same. Who is not disclosed is the same as nobody.

        An ``authid`` outlives a session; one that is not authenticated is the router's, for one session.
        """
        if self.session is not None and self.session == other.session:
            return True
        return self.authid is not None and (self.authid, self.authrole) == (other.authid, other.authrole)


class SessionView(Protocol):
    """What an invocation needs to know of the WAMP session it came over."""

    @property
    def max_size(self) -> int:
        """Bytes that one value may take on the way to the router."""

    def is_attached(self) -> bool:
        """Whether the session can send now."""


class Invocation:
    """One call from a WAMP peer.

    :ivar args: positional arguments, as they came
    :ivar kwargs: keyword arguments, as they came
    :ivar caller: who called
    :ivar on_interrupt: to be set by a handler that has something to stop: called once, with
        ``True`` where the caller surely is still there, when the call is cancelled or its caller leaves
    """

    def __init__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], details: CallDetails, session: SessionView
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.caller = Caller(details.caller, details.caller_authid, details.caller_authrole)
        self.on_interrupt: Callable[[bool], None] | None = None
        self._session = session
        self._send_progress: Callable[..., None] | None = details.progress

    @property
    def max_size(self) -> int:
        """Bytes that the answer may take."""
        return self._session.max_size

    @property
    def wants_progress(self) -> bool:
        """Whether the caller asked for progressive results, and the call has not ended."""
        return self._send_progress is not None

    def progress(self, state: str, meta: Any) -> None:
        """Send a progressive result, ``(state, meta)``. Does nothing where nobody asked for it."""
        if self._send_progress is None or not self._session.is_attached():
            return
        try:
            self._send_progress(state, normalise(meta, self._session.max_size))
        except Unencodable as unencodable:
            _log.warn("a progressive result cannot be sent: {reason}", reason=str(unencodable))
        except (PayloadExceededError, SerializationError, TransportLost) as error:
            # The final result tells the caller more than any of these; there is nobody else to tell.
            _log.debug("a progressive result was lost: {error}", error=error)

    def end(self) -> None:
        """Nothing progressive follows."""
        self._send_progress = None


#: What answers an invocation: with a value, which is normalised, or by failing with an `ApplicationError`.
Handler = Callable[[Invocation], Any]


class OpenInvocations:
    """The invocations of one WAMP session that have no answer yet.

    A result that comes after its session was lost has nobody to go to, and Autobahn raises when it
    is asked to send an error over a lost transport. So each invocation gets a Deferred of its own,
    which is settled here: with the answer while the session lasts, with nothing after it.

    """

    def __init__(self, errors: CallErrors, session: SessionView) -> None:
        self._errors = errors
        self._session = session
        self._open: set[Deferred[Any]] = set()
        self._waiters: list[Deferred[None]] = []
        #: How the router wants the invocation that it interrupts right now to end.
        self.interrupt_mode: str | None = None

    def __len__(self) -> int:
        return len(self._open)

    def endpoint(self, handler: Handler) -> Callable[..., Deferred[Any]]:
        """What Autobahn is given to register."""

        def invoke(*args: Any, **kwargs: Any) -> Deferred[Any]:
            details, keywords = kwargs[DETAILS], kwargs.get(KEYWORDS, {})
            return self._answer(handler, Invocation(args, keywords, details, self._session))

        return invoke

    def ended(self) -> Deferred[None]:
        """Fires as soon as each has its answer."""
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        self._tell_waiters()
        return waiter

    def close(self) -> None:
        """The session's transport is gone: let go of what Autobahn holds, and send nothing."""
        waiting, self._open = self._open, set()
        for answer in waiting:
            answer.callback(None)
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        if not self._open:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(None)

    def _answer(self, handler: Handler, invocation: Invocation) -> Deferred[Any]:
        def interrupted(answer: Deferred[Any]) -> None:
            self._open.discard(answer)
            invocation.end()
            if invocation.on_interrupt is not None:
                invocation.on_interrupt(self.interrupt_mode == Interrupt.KILL)
            else:
                handled.cancel()
            if self._session.is_attached():
                answer.errback(self._errors.make("revoked", "the call was cancelled"))
            else:
                answer.callback(None)
            self._tell_waiters()

        def settle(result: Any) -> None:
            invocation.end()
            if answer not in self._open or not self._session.is_attached():
                # Nobody waits any more, or `close` lets go of it in a moment.
                return
            self._open.discard(answer)
            if isinstance(result, ApplicationError):
                answer.errback(result)
            else:
                answer.callback(result)
            self._tell_waiters()

        answer: Deferred[Any] = Deferred(interrupted)
        self._open.add(answer)
        handled = maybeDeferred(handler, invocation)
        handled.addCallback(normalise, self._session.max_size).addErrback(
            self._as_application_error
        ).addCallback(settle)
        return answer

    def _as_application_error(self, failure: Failure) -> ApplicationError:
        error = failure.value
        if isinstance(error, ApplicationError):
            return error
        if isinstance(error, CancelledError):
            # It was interrupted, so its answer has been given.
            return self._errors.make("revoked", "the call was cancelled")
        if isinstance(error, Unencodable):
            return self._errors.make("result_unencodable", f"the result cannot be sent: {error}")
        # A defect of the bridge: its text may hold anything, so it goes to the log alone.
        _log.failure("a call failed inside the bridge", failure=failure)
        return ApplicationError(
            "wamp.error.runtime_error", "the call failed inside the bridge; its log says why"
        )
