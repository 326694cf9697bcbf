"""Encodes canvases: runs Celery's own ``apply_async``, and keeps what it would have sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from celery.canvas import Signature
from celery.local import Proxy, maybe_evaluate
from celery.result import ResultBase, ResultSet

from twistedcelery.encoding.app_view import bind_task, sends_its_own_way, view_of
from twistedcelery.encoding.chords import ChordBackend
from twistedcelery.encoding.encoder import Recorder, translated
from twistedcelery.encoding.message import Encoded
from twistedcelery.encoding.signatures import rebind
from twistedcelery.errors import InvalidCall

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["CanvasEncoder", "parents_first"]


class CanvasEncoder:
    """Runs ``apply_async`` of signatures and tasks, with no I/O.

    :param app: the configured Celery application
    :param recorder: takes the messages
    :param reply_to: the queue that workers reply to; ``None``: whatever Celery chooses
    """

    def __init__(self, app: Celery, recorder: Recorder, reply_to: str | None) -> None:
        self._recorder = recorder
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

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options and keyword arguments of a call, whose signatures send what they send to this encoder.

        Celery sends some of them at once: the body of an empty chord, for one.
        """
        return {name: self._rebound(value) for name, value in options.items()}

    def _rebound(self, value: Any) -> Any:
        if isinstance(value, Signature):
            return self.signature(value)
        if isinstance(value, list | tuple) and any(isinstance(one, Signature) for one in value):
            return type(value)(self._rebound(one) for one in value)
        return value

    def task(self, task: Any) -> Any:
        """A copy of a task that sends what it sends to this encoder."""
        # The decorator of an application gives a proxy, until the application is finalized; that of
        # no application (``shared_task``) one that stands for the current application's task.
        task = maybe_evaluate(task)
        if type(task) is Proxy:
            task = task._get_current_object()  # noqa: SLF001  # the only way that Celery has
        known = self._view.tasks.get(task.name)
        return known if known is not None and isinstance(known, type(task)) else bind_task(task, self._view)

    def sends_its_own_way(self, name: str) -> bool:
        """As the function of that name, of a registered task."""
        task = self._view.tasks.get(name)
        return task is not None and sends_its_own_way(task)

    def encode(
        self,
        what: str,
        apply_async: Callable[[], Any],
        *,
        resend: bool,
        own_way: bool = False,
        headers: Mapping[str, Any] | None = None,
    ) -> Encoded:
        """Send something here.

        :param what: names it in errors
        :param apply_async: sends, through what `signature` or `task` gave
        :param resend: whether messages may be sent again when their confirmation is lost
        :param own_way: whether it is a task with an ``apply_async`` of its own
        :param headers: what the messages of tasks have besides
        :raises CallRefused: a task's own ``apply_async`` refuses it
        :raises EncodeError: arguments cannot be serialised
        :raises InvalidCall: Celery refuses it
        :raises UnsupportedByBackend: it has a chord, and the result backend has none
        :raises BaseException: what a task raised, with ``task_always_eager``
        """
        conf = self._view.conf
        # With both, what is raised may be the task's own: it must reach the caller unchanged.
        as_it_is = conf.task_always_eager and conf.task_eager_propagates
        translating = nullcontext() if as_it_is else translated(what, own_way=own_way)
        with self._recorder.recording() as recorded, self._backend.noting() as noted, translating:
            result = apply_async()
        if own_way:
            result = self._result_of(what, result, recorded)
        if result is None:
            raise InvalidCall(f"{what} holds no task")
        messages = []
        for one in recorded:
            is_task = one.message.properties.get("correlation_id") is not None
            if is_task and headers:
                one.message.headers.update(headers)
            messages.append(one.outgoing(mandatory=is_task, resend=resend and is_task))
        said = {message.task_id: message.headers.get("ignore_result") for message in messages}
        ignored = frozenset(node.id for node in parents_first(result) if self._is_ignored(node, said))
        return Encoded(messages, noted, result, ignored)

    def _result_of(self, what: str, result: Any, recorded: Sequence[Any]) -> ResultBase:
        """What a task's own ``apply_async`` returned, or else the result of what it sent first."""
        if isinstance(result, ResultBase):
            return result
        for one in recorded:
            task_id = one.message.properties.get("correlation_id")
            if task_id is not None:
                return self._view.AsyncResult(task_id, task_name=one.message.headers.get("task"))
        raise InvalidCall(f"{what}: its apply_async sent nothing, and returned no result: {result!r:.200}")

    def _is_ignored(self, node: Any, said: Mapping[str | None, Any]) -> bool:
        if isinstance(node, ResultSet):
            return False
        # A later member of a chain has no message yet, and protocol 1 says nothing of it.
        ignored = said.get(node.id)
        if ignored is None:
            task = self._view.tasks.get(getattr(node, "task_name", None))
            ignored = node.ignored or getattr(task, "ignore_result", False)
        return bool(ignored)


def parents_first(root: Any) -> Iterator[Any]:
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
