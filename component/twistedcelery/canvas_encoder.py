"""Canvases in, messages out: Celery's own ``apply_async``, recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import states
from celery.local import Proxy, maybe_evaluate
from celery.result import EagerResult, ResultSet

from twistedcelery.appview import bind_task, view_of
from twistedcelery.chords import ChordBackend
from twistedcelery.encoder import Encoder, translated
from twistedcelery.errors import InvalidCall
from twistedcelery.results import AnyResult, GroupResult, TaskResult
from twistedcelery.signatures import rebind

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.answers import Answers
    from twistedcelery.message import OutgoingMessage, Preparation

__all__ = ["CanvasEncoder", "EncodedCanvas"]


@dataclass(frozen=True, slots=True)
class EncodedCanvas:
    """A canvas, ready to be published.

    :ivar messages: in the order in which they are to be published; events have no task id
    :ivar preparations: what the result backend has to know before that
    :ivar result: what Celery's ``apply_async`` returned, as results of the client's
    """

    messages: list[OutgoingMessage]
    preparations: list[Preparation]
    result: AnyResult


class CanvasEncoder:
    """Runs ``apply_async`` of signatures and tasks, with no I/O.

    :param app: the configured Celery application
    :param encoder: has the recorder that takes the messages
    :param reply_to: the queue that workers reply to; ``None``: whatever Celery chooses
    """

    def __init__(self, app: Celery, encoder: Encoder, reply_to: str | None) -> None:
        self._recorder = encoder.recorder
        self._backend = ChordBackend(app)
        self._view = view_of(app, reply_to, producer=self._recorder, backend=self._backend)
        self._backend.use(self._view)

    def signature(
        self, signature: Mapping[str, Any], copy: Callable[[Any], Any] = lambda arguments: arguments
    ) -> Any:
        """A copy of a signature that sends what it sends to this encoder.

        :raises InvalidCall: it is no signature
        """
        with translated(f"signature {signature!r:.200}"):
            return rebind(signature, self._view, copy)

    def task(self, task: Any) -> Any:
        """A copy of a task that sends what it sends to this encoder."""
        # The decorator of an application gives a proxy, until the application is finalized; that of
        # no application (``shared_task``) one that stands for the current application's task.
        task = maybe_evaluate(task)
        if type(task) is Proxy:
            task = task._get_current_object()  # noqa: SLF001  # the only way that Celery has
        known = self._view.tasks.get(task.name)
        return known if known is not None and isinstance(known, type(task)) else bind_task(task, self._view)

    def encode(
        self, what: str, apply_async: Callable[[], Any], access: Answers, *, resend: bool
    ) -> EncodedCanvas:
        """Send something here.

        :param what: for whoever reads an error
        :param apply_async: sends, through what `signature` or `task` gave
        :param resend: whether messages may be sent again when their confirmation is lost
        :raises EncodeError: arguments cannot be serialised
        :raises InvalidCall: Celery refuses it
        :raises UnsupportedByBackend: it has a chord, and the result backend has none
        :raises BaseException: what a task raised, with ``task_always_eager``
        """
        conf = self._view.conf
        # What is raised then is the task's, or cannot be told from that.
        as_it_is = conf.task_always_eager and conf.task_eager_propagates
        translating = nullcontext() if as_it_is else translated(what)
        with self._recorder.recording() as recorded, self._backend.noting() as noted, translating:
            result = apply_async()
        if result is None:
            raise InvalidCall(f"{what} holds no task")
        messages = [
            one.outgoing(mandatory=one.message.properties.get("correlation_id") is not None, resend=resend)
            for one in recorded
        ]
        return EncodedCanvas(messages, noted, self._converted(result, messages, access))

    def _converted(self, result: Any, messages: list[OutgoingMessage], access: Answers) -> AnyResult:
        """Celery's results as the client's own."""
        ignored = {message.task_id: message.headers.get("ignore_result") for message in messages}
        made: dict[int, AnyResult] = {}
        for node in _parents_first(result):
            parent = made[id(node.parent)] if node.parent is not None else None
            if isinstance(node, ResultSet):
                members = [made[id(member)] for member in node.results]
                made[id(node)] = GroupResult(access, str(node.id), members, parent)
                continue
            name = getattr(node, "task_name", None)
            # A later member of a chain has no message yet, and protocol 1 says nothing of it.
            keeps = ignored.get(node.id)
            if keeps is None:
                keeps = node.ignored or getattr(self._view.tasks.get(name), "ignore_result", False)
            task = TaskResult(access, node.id, parent, name, bool(keeps))
            if isinstance(node, EagerResult):
                # Celery's get() of one that was ignored or rejected gives nothing.
                task.ignored = task.ignored or node.state not in states.READY_STATES
                task.end({**node._cache, "children": None})  # Celery offers it in parts only  # noqa: SLF001  # see above
            made[id(node)] = task
        return made[id(result)]


def _parents_first(root: Any) -> Iterator[Any]:
    """Every result of a tree, each after its parent and its members."""
    seen: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.append((node, True))
        if node.parent is not None:
            stack.append((node.parent, False))
        if isinstance(node, ResultSet):
            stack.extend((member, False) for member in node.results)
