"""Passes questions about a task on to the bridge that sent it.

The router gives a call to any of several bridges. Only the bridge that sent a task follows it, and knows
its caller. The task's id says which bridge that is. So each bridge has a procedure of its own,
``celery_admin.sent_by.<bridge>``, which the others call with the question, the task's id and the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError, TransportLost
from twisted.internet.defer import CancelledError, Deferred, fail

from twistedcelery.wamp.invocation import Caller

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from twistedcelery import TwistedCelery
    from twistedcelery.wamp.callers.known_tasks import KnownTasks
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.interfaces import WampSession
    from twistedcelery.wamp.invocation import Invocation

__all__ = ["PeerBridges"]

_QUESTIONS = ("result", "state", "revoke")


class PeerBridges:
    """Asks the other bridges, and answers them.

    :param known: the tasks that this bridge sent
    :param session: returns the current session
    """

    def __init__(
        self,
        client: TwistedCelery,
        context: Context,
        known: KnownTasks,
        session: Callable[[], WampSession | None],
    ) -> None:
        self._client = client
        self._context = context
        self._errors = context.errors
        self._known = known
        self._session = session

    @property
    def uri(self) -> str:
        """The procedure of this bridge, which `answer` handles."""
        return self._uri_of(self._context.ids.own)

    def ask(self, question: str, task_id: str, caller: Caller) -> Deferred[Any]:
        """Ask the bridge that sent a task.

        :param question: ``"result"``, which waits for it, ``"state"`` or ``"revoke"``
        :return: fires with the answer. It fails with the other bridge's `ApplicationError`, or with
            ``unknown_task`` if there is no such bridge, or it may not be called
        """
        owner = self._context.ids.owner(task_id)
        session = self._session()
        if owner is None or owner == self._context.ids.own or session is None or not session.is_attached():
            return fail(self._unknown(task_id))

        def failed(failure: Failure) -> Failure:
            error = failure.value
            if isinstance(error, CancelledError):
                # The caller has stopped waiting.
                return failure
            if isinstance(error, ApplicationError) and self._errors.is_one(error):
                raise self._errors.again(error)
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
        return self.revoke(task_id) if question == "revoke" else known.result()

    def revoke(self, task_id: str) -> Deferred[None]:
        """Revoke a task, whoever sent it.

        :return: fires once the broker has the request
        """

        def failed(failure: Failure) -> None:
            raise self._errors.not_delivered(failure, task_id)

        def done(_: object) -> None:
            self._known.revoked(task_id)

        terminate = self._context.config.terminate
        return self._client.revoke(task_id, terminate=terminate).addCallbacks(done, failed)

    def _parse(self, invocation: Invocation) -> tuple[str, str, Caller]:
        # Operators can call it too.
        try:
            question, task_id, (session, authid, authrole) = invocation.args
        except (TypeError, ValueError):
            question = None
        if question not in _QUESTIONS or not isinstance(task_id, str):
            raise self._errors.make("invalid_arguments", "only bridges call this procedure")
        return question, task_id, Caller(session, authid, authrole)

    def _uri_of(self, bridge: str) -> str:
        return self._context.uris.admin(f"sent_by.{bridge}")

    def _unknown(self, task_id: str) -> ApplicationError:
        # The same text for a task that does not exist and for another caller's.
        return self._errors.make("unknown_task", f"no bridge knows the task {task_id}")
