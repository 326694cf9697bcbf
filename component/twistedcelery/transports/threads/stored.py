"""Reading what a result backend has stored for many tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from celery import states
from celery.backends.base import BaseKeyValueStoreBackend

from twistedcelery.transports.threads.backend import Undecodable

__all__ = ["StoredState", "check_meta", "read_stored"]


class StoredState:
    """What is stored for one task.

    :ivar fingerprint: equal for equal states, and cheap to compare
    """

    __slots__ = ("_backend", "_content", "fingerprint", "task_id")

    def __init__(self, backend: Any, task_id: str, content: Any, fingerprint: Any) -> None:
        self._backend = backend
        self._content = content
        self.task_id = task_id
        self.fingerprint = fingerprint

    def meta(self) -> Mapping[str, Any]:
        """The result meta. Raises whatever decoding raises: a file may be half written."""
        content = self._content
        return check_meta(content if isinstance(content, Mapping) else self._backend.decode_result(content))


def check_meta(meta: Any) -> Mapping[str, Any]:
    """A result meta that has what its readers rely on.

    :raises Exception: it has not, or it stands for something that could not be decoded
    """
    if isinstance(meta, Undecodable):
        raise meta.error
    if not isinstance(meta, Mapping) or not isinstance(meta.get("status"), str) or "result" not in meta:
        raise ValueError("a result meta is a mapping with status and result")
    return meta


def read_stored(backend: Any, task_ids: Sequence[str]) -> Iterator[StoredState]:
    """Read the states of those tasks that have one. This blocks.

    :param backend: a Celery result backend; what it raises when it cannot be reached comes through
    """
    if not isinstance(backend, BaseKeyValueStoreBackend):
        for task_id in task_ids:
            meta = backend.get_task_meta(task_id, cache=False)
            if meta.get("status") != states.PENDING:
                # Exceptions are made anew by each read, and compare unequal.
                yield StoredState(backend, task_id, meta, (meta.get("status"), repr(meta.get("result"))))
        return
    for task_id, payload in zip(task_ids, _payloads(backend, task_ids), strict=True):
        if payload:
            yield StoredState(backend, task_id, payload, payload)


def _payloads(backend: Any, task_ids: Sequence[str]) -> Iterator[Any]:
    keys = [backend.get_key_for_task(task_id) for task_id in task_ids]
    try:
        found = backend.mget(keys)
    except NotImplementedError:
        found = map(backend.get, keys)
    if isinstance(found, Mapping):
        # Some clients answer with a mapping, and leave out what they do not have.
        return map(found.get, keys)
    return iter(found)
