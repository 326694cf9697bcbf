"""Finds calls whose task is lost, and calls that wait because no worker consumes their queue.

Nothing is asked for calls that end soon. Of those that wait, all together, the broker and the workers
are asked from time to time. A false alarm is worse than a late one: whatever cannot be known for
certain counts as "not lost".

A task is lost when all of this holds, twice, some seconds apart:

- It has waited for ``lost_after`` seconds, and for its ETA and its expiry.
- Its queue is empty, and at least one worker consumes it.
- Every worker that consumes the queue, and every worker that was silent before while the task waited, has
  answered, and none has the task.
- There is no result, where the backend keeps results.
- Nothing is under way that could be what the task was replaced with (``Task.replace``): all queues
  that are known are empty, and workers have only tasks that this client sent and waits for itself.

Where the broker has come back without the reply queue, it has lost the tasks that waited as well, and calls
of before need not have waited for ``lost_after``.

A task that was retried may wait anywhere, and is never reported as lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import ResultLost, TwistedCeleryError
from twistedcelery.transports.decoding import FINAL_STATES

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.encoding.message import OutgoingMessage
    from twistedcelery.results.pending import PendingResults
    from twistedcelery.transports.binding import Binding, BoundTransport
    from twistedcelery.transports.interface import QueueState
    from twistedcelery.workers.control import Control, Inspect

__all__ = ["LostCalls"]

_log = Logger()

#: Seconds that a call has waited before anything is asked for it.
PATIENCE = 5.0

#: Seconds between two rounds of questions, while calls wait.
EVERY = 15.0

#: Seconds, at least, between the two findings that make a task lost.
CONFIRM_AFTER = 5.0

#: Seconds that workers have for an answer.
ANSWER_TIME = 2.0

#: Seconds before a task was sent, in which a worker that answered counts as there when it was sent.
RECENTLY = 60.0

#: Task ids in one question. It is a broadcast that every worker reads.
IDS_AT_ONCE = 1000


@dataclass(slots=True, eq=False)
class _Sent:
    """A task that the broker has taken, and that is waited for.

    :ivar address: the message's exchange, routing key, and what had to be declared for it
    :ivar at: when the broker had it
    :ivar not_before: its ETA and its expiry, as its message has them
    :ivar is_whole: whether the message says when the task is due
    :ivar queue: where it went; ``None`` where that is not certain, or not looked up yet
    :ivar consumers: how many workers consumed the queue when one of them was silent
    :ivar silent: the workers that have been silent since
    :ivar found: when it was first found to be missing
    :ivar is_wiped: whether the broker has lost its queues since
    :ivar is_reported: whether its caller was told that no worker consumes its queue
    """

    task_id: str
    name: str
    address: tuple[str, str, tuple[Any, ...]]
    at: float
    not_before: tuple[Any, Any]
    is_whole: bool
    queue: str | None = None
    consumers: int = 0
    silent: frozenset[str] = frozenset()
    found: float | None = None
    is_wiped: bool = False
    is_reported: bool = False


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the workers said in one round.

    :ivar queues: the queues that each worker consumes, of those who answered every question
    :ivar tasks: the ids, of those asked for, that some worker has
    """

    queues: Mapping[str, frozenset[str]]
    tasks: Collection[str]

    def consumers(self, queue: str) -> int:
        """How many of them consume a queue."""
        return sum(queue in consumed for consumed in self.queues.values())


class LostCalls:
    """Watches the calls of a client that wait long.

    :param app: the Celery application
    :param reactor: for time
    :param binding: has the transport
    :param pending: who waits for which task
    :param control: asks workers
    :param lost_after: seconds that a task has waited at least before it is lost; ``None``: it never is
    :param now: the time of day, for ETAs
    """

    def __init__(
        self,
        app: Celery,
        reactor: Clock,
        binding: Binding,
        pending: PendingResults,
        control: Control,
        lost_after: float | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._reactor = reactor
        self._binding = binding
        self._pending = pending
        self._control = control
        self._lost_after = lost_after
        self._now = now
        self._sent: dict[str, _Sent] = {}
        self._timer: Timer | None = None
        self._round: Deferred[None] | None = None
        #: The queues that the log has a warning about.
        self._unconsumed: set[str] = set()
        #: When each worker has last answered, by worker and queue.
        self._last_answers: dict[tuple[str, str], float] = {}
        self._is_stopped = False
        pending.on_resumed = self._resumed

    def sent(self, message: OutgoingMessage) -> None:
        """The broker has taken a task's message."""
        task_id = message.task_id
        if task_id is None or self._is_stopped:
            return
        headers = message.headers
        self._sent[task_id] = _Sent(
            task_id,
            headers.get("task", "a task"),
            # Looked up for those alone that wait long.
            (message.exchange, message.routing_key, message.declare),
            self._reactor.seconds(),
            (headers.get("eta"), headers.get("expires")),
            # Protocol 1 has the ETA in the body. Plug-ins of the broker may delay a message.
            is_whole="eta" in headers and "x-delay" not in headers,
        )
        if self._timer is None and self._round is None:
            self._timer = self._reactor.callLater(PATIENCE, self._look)

    def discard(self, task_id: str) -> None:
        """The call has ended."""
        self._sent.pop(task_id, None)
        if not self._sent:
            self._stop_timer()

    def stop(self) -> None:
        """Ask nothing more."""
        self._is_stopped = True
        self._sent.clear()
        self._stop_timer()
        if self._round is not None:
            self._round.cancel()

    def _resumed(self, replies_lost: bool) -> None:
        """Look soon: what was under way during an interruption may be lost."""
        if replies_lost:
            for sent in self._sent.values():
                sent.is_wiped = True
            _log.warn("the broker has lost the reply queue; {count} calls are checked", count=len(self._sent))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._reactor.callLater(PATIENCE, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        # Parts of canvases that have ended.
        for task_id in [each for each in self._sent if not self._pending.is_waited_for(each)]:
            del self._sent[task_id]
        now = self._reactor.seconds()
        waiting = [sent for sent in self._sent.values() if now - sent.at >= PATIENCE]
        for sent in waiting:
            sent.queue = _queue_at(*sent.address)
        if not waiting:
            if self._sent:
                self._timer = self._reactor.callLater(PATIENCE, self._look)
            return
        self._round = Deferred.fromCoroutine(self._ask(waiting))
        self._round.addErrback(self._failed, waiting).addCallback(self._looked)

    def _looked(self, _: None) -> None:
        self._round = None
        if not self._is_stopped and self._sent:
            found = any(sent.found is not None for sent in self._sent.values())
            self._timer = self._reactor.callLater(CONFIRM_AFTER if found else EVERY, self._look)

    def _failed(self, failure: Failure, waiting: list[_Sent]) -> None:
        for sent in waiting:
            sent.found = None
        if failure.check(CancelledError):
            return
        if failure.check(TwistedCeleryError):
            _log.debug("could not ask what became of calls: {error}", error=failure.value)
        else:
            _log.failure("could not ask what became of calls", failure=failure)

    async def _ask(self, waiting: list[_Sent]) -> None:
        missing = await self._find_missing(waiting)
        now = self._reactor.seconds()
        for sent in waiting:
            if sent not in missing:
                sent.found = None
            elif sent.found is None:
                sent.found = now
            elif now - sent.found >= CONFIRM_AFTER:
                self._lose(sent)

    async def _find_missing(self, waiting: list[_Sent]) -> list[_Sent]:
        transport = self._binding.use()
        conf = self._app.conf
        if not transport.connected or conf.broker_read_url != conf.broker_write_url:
            return []
        # The queues first, then the workers: tasks move this way.
        queues = await self._look_at(transport, {sent.queue for sent in waiting if sent.queue is not None})
        suspects = [sent for sent in waiting if self._is_due(sent)]
        counted = all(state.consumers is not None for state in queues.values())
        if not queues or not conf.worker_enable_remote_control or (self._lost_after is None and counted):
            return []
        answers = await self._ask_workers([sent.task_id for sent in suspects])
        self._note_answers(waiting, queues, answers)
        missing = [sent for sent in suspects if _is_missing(sent, queues, answers)]
        if not missing or not await self._is_quiet(transport, answers, missing):
            return []
        if transport.store is not None:
            missing = [sent for sent in missing if not await self._has_result(transport.store, sent)]
        return missing if transport.connected else []

    async def _look_at(self, transport: BoundTransport, names: set[str]) -> dict[str, QueueState]:
        """Look at queues. Those of which the transport cannot tell are left out."""
        queues = {}
        for name in sorted(names):
            state = await transport.subscriber.look(name)
            if state is not None:
                queues[name] = state
                if state.consumers is not None:
                    self._note_consumers(name, state, state.consumers > 0)
        return queues

    def _note_answers(
        self, waiting: list[_Sent], queues: Mapping[str, QueueState], answers: _Answers
    ) -> None:
        for name, state in queues.items():
            if state.workers is not None and state.workers <= answers.queues.keys():
                self._note_consumers(name, state, answers.consumers(name) > 0)
        for sent in waiting:
            if sent.queue is not None and sent.queue in queues:
                seen = {
                    worker
                    for (worker, queue), when in self._last_answers.items()
                    if queue == sent.queue and when >= sent.at - RECENTLY
                }
                _note_silence(sent, sent.queue, queues[sent.queue], answers, seen)
        oldest = min(sent.at for sent in waiting) - RECENTLY
        now = self._reactor.seconds()
        self._last_answers = {
            **{key: when for key, when in self._last_answers.items() if when >= oldest},
            **{(worker, queue): now for worker, consumed in answers.queues.items() for queue in consumed},
        }

    def _is_due(self, sent: _Sent) -> bool:
        """Whether the task has waited for so long that it may be lost."""
        if self._lost_after is None or sent.queue is None or not sent.is_whole:
            return False
        if self._pending.was_retried(sent.task_id):
            return False
        least = 0.0 if sent.is_wiped else self._lost_after
        if self._reactor.seconds() - sent.at < least:
            return False
        return all(moment is None or self._now() - _timestamp(moment) >= least for moment in sent.not_before)

    def _note_consumers(self, queue: str, state: QueueState, is_consumed: bool) -> None:
        """Tell the callers of tasks in a queue that no worker consumes it."""
        if is_consumed:
            self._unconsumed.discard(queue)
            return
        if not state.messages:
            return
        reason = f"no worker consumes queue {queue!r}"
        if queue not in self._unconsumed:
            self._unconsumed.add(queue)
            _log.warn("calls wait: {reason}", reason=reason)
        now = self._reactor.seconds()
        for sent in list(self._sent.values()):
            if sent.queue == queue and not sent.is_reported and now - sent.at >= PATIENCE:
                sent.is_reported = True
                self._pending.update(sent.task_id, "WAITING", {"reason": reason})

    def _inspect(self, expected: int | None = None) -> Inspect:
        """Queries that end early once so many workers have answered."""
        return self._control.inspect(timeout=ANSWER_TIME, limit=expected)

    async def _ask_workers(self, task_ids: list[str]) -> _Answers:
        active = await self._inspect().active_queues() or {}
        queues = {
            worker: frozenset(queue["name"] for queue in consumed)
            for worker, consumed in active.items()
            if isinstance(consumed, list)
        }
        tasks: set[str] = set()
        for start in range(0, len(task_ids), IDS_AT_ONCE):
            if not queues:
                break
            some = task_ids[start : start + IDS_AT_ONCE]
            replies = await self._inspect(len(queues)).query_task(some) or {}
            for worker in list(queues):
                reply = replies.get(worker)
                if not isinstance(reply, dict) or "error" in reply:
                    del queues[worker]
                else:
                    tasks.update(reply)
        return _Answers(queues, tasks)

    async def _is_quiet(self, transport: BoundTransport, answers: _Answers, missing: list[_Sent]) -> bool:
        """Whether nothing is under way that a missing task may have been replaced with, nor one of them."""
        consumed = frozenset().union(*answers.queues.values())
        names = {*consumed, *self._app.amqp.queues}
        for name in sorted(names):
            state = await transport.subscriber.look(name)
            if state is None or state.messages or (state.consumers or 0) > answers.consumers(name):
                return False
        reply_to = transport.results.reply_to
        if reply_to is not None:
            state = await transport.subscriber.look(reply_to)
            if state is None or state.messages:
                # Results that have not come.
                return False
        missing_ids = {sent.task_id for sent in missing}
        # Tasks move this way, too.
        for query in ("scheduled", "reserved", "active"):
            replies = await getattr(self._inspect(len(answers.queues)), query)() or {}
            if not answers.queues.keys() <= replies.keys():
                return False
            for tasks in replies.values():
                if not isinstance(tasks, list) or not all(
                    self._is_other_call(task, missing_ids) for task in tasks
                ):
                    return False
        return True

    def _is_other_call(self, task: Mapping[str, Any], missing_ids: Collection[str]) -> bool:
        task_id = task.get("request", task).get("id")
        return task_id not in missing_ids and task_id in self._sent and self._pending.is_waited_for(task_id)

    async def _has_result(self, store: Any, sent: _Sent) -> bool:
        meta = await store.task_meta(sent.task_id)
        if meta["status"] in FINAL_STATES:
            # It was stored, and the call was not told.
            self._pending.state_changed(sent.task_id, meta)
            return True
        return bool(meta["status"] == "RETRY")

    def _lose(self, sent: _Sent) -> None:
        why = "Perhaps the worker that ran it was killed."
        if sent.is_wiped:
            why = "The broker has come back without its queues."
        if self._pending.is_waited_for(sent.task_id):
            self._pending.reply_failed(
                sent.task_id,
                ResultLost(
                    f"task {sent.name} [{sent.task_id}] is lost: no worker has it, queue {sent.queue!r} is "
                    f"empty, and there is no result. {why}"
                ),
            )


def _queue_at(exchange: str, routing_key: str, declared: Sequence[Any]) -> str | None:
    """The queue that a message went to, where that is certain."""
    queues = [entity for entity in declared if hasattr(entity, "queue_arguments")]
    if len(queues) == 1:
        queue = queues[0]
        arguments = queue.queue_arguments or {}
        kind = queue.exchange.type if queue.exchange is not None else "direct"
        # Retries of tasks in quorum queues wait in queues of their own, and what a dead letter
        # exchange takes may come back.
        if kind != "direct" or {"x-queue-type", "x-dead-letter-exchange"} & arguments.keys():
            return None
        name: str = queue.name
        return name
    return routing_key if not queues and exchange == "" else None


def _timestamp(moment: Any) -> float:
    """Seconds since the epoch of an ETA or expiry; infinite where it cannot be read."""
    try:
        parsed = datetime.fromisoformat(moment)
    except (TypeError, ValueError):
        return float("inf")
    return parsed.timestamp() if parsed.tzinfo is not None else float("inf")


def _note_silence(
    sent: _Sent, queue: str, state: QueueState, answers: _Answers, seen: Collection[str]
) -> None:
    """A worker that is silent now may have the task, even if the broker loses sight of it later.

    :param seen: those that have consumed the queue since shortly before the task was sent. One that was
        told to stop finishes its tasks in silence.
    """
    if state.consumers is not None and state.consumers > answers.consumers(queue):
        sent.consumers = max(sent.consumers, state.consumers)
    known = state.workers or frozenset()
    sent.silent = (sent.silent | known | frozenset(seen)) - answers.queues.keys()


def _is_missing(sent: _Sent, queues: Mapping[str, QueueState], answers: _Answers) -> bool:
    """Whether nobody has a task: neither its queue, nor any worker."""
    state = queues.get(sent.queue or "")
    if state is None or state.messages or sent.task_id in answers.tasks:
        return False
    answered = answers.consumers(sent.queue or "")
    expected = max(1, sent.consumers, state.consumers or 0)
    return answered >= expected and not sent.silent
