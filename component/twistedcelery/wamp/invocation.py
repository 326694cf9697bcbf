"""One WAMP call that has reached the bridge, from its arguments to its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autobahn.exception import PayloadExceededError
from autobahn.wamp.exception import ApplicationError, SerializationError, TransportLost
from autobahn.wamp.message import Interrupt
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters, settle
from twistedcelery.wamp.options import CALLER_HEADERS
from twistedcelery.wamp.values import Unencodable, normalise

if TYPE_CHECKING:
    from autobahn.wamp.types import CallDetails

    from twistedcelery.wamp.errors import CallErrors
    from twistedcelery.wamp.interfaces import WampSession

__all__ = ["DETAILS", "KEYWORDS", "Caller", "Handler", "Invocation", "OpenInvocations"]

#: The keyword in which Autobahn passes a call's details.
DETAILS = "details"

#: The keyword in which the session passes all of the caller's keywords, whatever their names.
KEYWORDS = "keywords"

_log = Logger()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called. Everything is ``None`` unless the router discloses its callers.

    :ivar session: the WAMP session id
    :ivar topic: the topic of the event, of a task that a trigger submits
    """

    session: int | None = None
    authid: str | None = None
    authrole: str | None = None
    topic: str | None = None

    @property
    def identity(self) -> tuple[str, str | None] | int | None:
        """What limits count by: the authid with the role, or the session; ``None``: undisclosed."""
        return self.session if self.authid is None else (self.authid, self.authrole)

    def headers(self) -> dict[str, Any]:
        """The message headers from which the task learns who called."""
        known = (
            ("session", self.session),
            ("authid", self.authid),
            ("authrole", self.authrole),
            ("topic", self.topic),
        )
        return {f"{CALLER_HEADERS}{name}": value for name, value in known if value is not None}

    def is_same(self, other: Caller) -> bool:
        """Whether both are the same caller. An undisclosed caller never matches.

        An ``authid`` outlives a session. The router gives an anonymous session one of its own.
        """
        if self.session is not None and self.session == other.session:
            return True
        return self.authid is not None and (self.authid, self.authrole) == (other.authid, other.authrole)


class Invocation:
    """One call from a WAMP peer.

    :ivar args: positional arguments, as they came
    :ivar kwargs: keyword arguments, as they came
    :ivar task_id: the id of the task that the handler sent, for errors
    :ivar on_interrupt: set by a handler that has something to stop. It is called once, when the call is
        cancelled or its caller leaves: with ``True`` if the caller is certainly still there
    """

    def __init__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], details: CallDetails, session: WampSession
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.caller = Caller(details.caller, details.caller_authid, details.caller_authrole)
        self.task_id: str | None = None
        self.on_interrupt: Callable[[bool], None] | None = None
        self._session = session
        self._send_progress: Callable[..., None] | None = details.progress

    @property
    def wants_progress(self) -> bool:
        """Whether the caller asked for progressive results, and the call has not ended."""
        return self._send_progress is not None

    def progress(self, state: str, meta: Any) -> None:
        """Send a progressive result, ``(state, meta)``, if the caller asked for it."""
        if self._send_progress is None or not self._session.is_attached():
            return
        try:
            self._send_progress(state, normalise(meta, self._session.max_size))
        except Unencodable as unencodable:
            _log.warn("a progressive result cannot be sent: {reason}", reason=str(unencodable))
        except (PayloadExceededError, SerializationError, TransportLost) as error:
            # The caller still gets the final result.
            _log.debug("a progressive result was lost: {error}", error=error)

    def end(self) -> None:
        """Send no more progressive results."""
        self._send_progress = None


#: Answers an invocation: with a value, or by failing with an `ApplicationError`. The value is normalised
#: by `OpenInvocations`.
Handler = Callable[[Invocation], Any]


class OpenInvocations:
    """The invocations of one WAMP session that have no answer yet.

    An answer may come after its session was lost, and Autobahn raises if it has to send an error over a
    lost transport. So each invocation gets a Deferred of its own. It fires with the answer while the
    session lasts, and with ``None`` after it.
    """

    def __init__(self, errors: CallErrors, session: WampSession) -> None:
        self._errors = errors
        self._session = session
        self._open: set[Deferred[Any]] = set()
        self._ended: Waiters[None] = Waiters()
        #: The mode in which the router interrupts an invocation right now.
        self.interrupt_mode: str | None = None

    def __len__(self) -> int:
        return len(self._open)

    def endpoint(self, handler: Handler) -> Callable[..., Deferred[Any]]:
        """Make the function that Autobahn registers."""

        def invoke(*args: Any, **kwargs: Any) -> Deferred[Any]:
            details, keywords = kwargs[DETAILS], kwargs.get(KEYWORDS, {})
            return self._answer(handler, Invocation(args, keywords, details, self._session))

        return invoke

    def ended(self) -> Deferred[None]:
        """Fires as soon as every invocation has its answer."""
        waiter = self._ended.wait()
        self._check_ended()
        return waiter

    def close(self) -> None:
        """Release what Autobahn holds, and send nothing: the session's transport is gone."""
        answers, self._open = self._open, set()
        for answer in answers:
            settle(answer, None)
        self._check_ended()

    def _check_ended(self) -> None:
        if not self._open:
            self._ended.fire(None)

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
            self._check_ended()

        def ended(outcome: Any) -> None:
            invocation.end()
            if answer not in self._open or not self._session.is_attached():
                # The caller has left, or `close` is about to release it.
                return
            self._open.discard(answer)
            settle(answer, outcome)
            self._check_ended()

        answer: Deferred[Any] = Deferred(interrupted)
        self._open.add(answer)
        handled = maybeDeferred(handler, invocation)
        # The only place where a result is normalised.
        handled.addCallback(normalise, self._session.max_size)
        handled.addErrback(self._as_application_error, invocation).addBoth(ended)
        return answer

    def _as_application_error(self, failure: Failure, invocation: Invocation) -> Failure:
        error = failure.value
        if isinstance(error, ApplicationError):
            return failure
        if isinstance(error, CancelledError):
            # It was interrupted, and has its answer.
            return Failure(self._errors.make("revoked", "the call was cancelled"))
        if isinstance(error, Unencodable):
            return Failure(self._errors.unencodable(error, invocation.task_id))
        # A defect of the bridge. Its text may contain anything, so only the log gets it.
        _log.failure("a call failed inside the bridge", failure=failure)
        return Failure(
            ApplicationError("wamp.error.runtime_error", "the call failed inside the bridge; see its log")
        )
