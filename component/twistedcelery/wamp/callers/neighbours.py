"""Questions about a task go to the bridge that sent it.

Of several bridges the router gives a call to any. A task's id tells which of them sent it; that one alone
follows it, and knows whose it is. So each has a procedure of its own, ``celery_admin.sent_by.<bridge>``,
which the others call: with the question, the task's id, and who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from autobahn.wamp.exception import ApplicationError, TransportLost
from twisted.internet.defer import CancelledError, Deferred, fail

from twistedcelery.wamp.callers.known_tasks import KnownTasks
from twistedcelery.wamp.invocation import Caller

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from twistedcelery import TwistedCelery
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.invocation import Invocation
    from twistedcelery.wamp.uris import Uris

__all__ = ["CallingSession", "Neighbours"]


class CallingSession(Protocol):
    """What neighbours need of a WAMP session."""

    def is_attached(self) -> bool:
        """Whether the session can send now."""

    def call(self, procedure: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """As `autobahn.wamp.interfaces.ICaller.call`."""


class Neighbours:
    """Asks the other bridges, and answers them.

    :param session: gives the session that there is
    """

    def __init__(
        self,
        client: TwistedCelery,
        context: Context,
        uris: Uris,
        known: KnownTasks,
        session: Callable[[], CallingSession | None],
    ) -> None:
        self._client = client
        self._context = context
        self._uris = uris
        self._known = known
        self._session = session

    @property
    def uri(self) -> str:
        """The procedure that `answer` answers."""
        return self._uri_of(self._context.ids.own)

    def ask(self, question: str, task_id: str, caller: Caller) -> Deferred[Any]:
        """Ask the bridge that sent a task.

        :param question: ``"result"``, which waits for it, ``"state"`` or ``"revoke"``
        :return: fires with the answer. It fails with the `ApplicationError` that the other bridge has made of
            it; with ``unknown_task`` also where there is no such bridge, or none that may be asked
        """
        owner = self._context.ids.owner(task_id)
        session = self._session()
        if owner is None or owner == self._context.ids.own or session is None or not session.is_attached():
            return fail(self._unknown(task_id))

        def failed(failure: Failure) -> Failure:
            error = failure.value
            if isinstance(error, CancelledError):
                # Who asked waits no longer.
                return failure
            if isinstance(error, ApplicationError) and self._context.errors.is_one(error):
                raise self._context.errors.again(error)
            failure.trap(ApplicationError, TransportLost)
            raise self._unknown(task_id)

        identity = [caller.session, caller.authid, caller.authrole]
        return session.call(self._uri_of(owner), question, task_id, identity).addErrback(failed)

    def answer(self, invocation: Invocation) -> Any:
        """Answer another bridge."""
        question, task_id, caller = self._parse(invocation)
        known = self._known.find(task_id, caller)
        if known is None:
            raise self._unknown(task_id)
        if question == "state":
            return known.state
        return self.revoke(task_id) if question == "revoke" else KnownTasks.result(known)

    def revoke(self, task_id: str) -> Deferred[None]:
        """Revoke a task, whoever has sent it.

        :return: fires once the broker has the request
        """

        def failed(failure: Failure) -> None:
            raise self._context.errors.not_delivered(failure, task_id)

        terminate = self._context.config.terminate
        return self._client.revoke(task_id, terminate=terminate).addErrback(failed)

    def _parse(self, invocation: Invocation) -> tuple[str, str, Caller]:
        # Operators can call it as well.
        try:
            question, task_id, (session, authid, authrole) = invocation.args
        except (TypeError, ValueError):
            question = None
        if question not in ("result", "state", "revoke") or not isinstance(task_id, str):
            raise self._context.errors.make(
                "invalid_arguments", "this procedure is for bridges to ask each other"
            )
        return question, task_id, Caller(session, authid, authrole)

    def _uri_of(self, bridge: str) -> str:
        return self._uris.admin(f"sent_by.{bridge}")

    def _unknown(self, task_id: str) -> ApplicationError:
        # The same words for a task that does not exist and for one of somebody else.
        return self._context.errors.make("unknown_task", f"no bridge knows the task {task_id}")
