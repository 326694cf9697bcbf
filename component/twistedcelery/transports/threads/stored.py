"""Reading what a result backend has stored for many tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pickle import UnpicklingError
from typing import Any

from celery import states
from celery.backends.base import BaseKeyValueStoreBackend
from celery.exceptions import SecurityError
from kombu.exceptions import ContentDisallowed, SerializationError

from twistedcelery.transports.threads.backend import Undecodable

__all__ = ["StoredState", "check_meta", "read_stored"]


#: What decoding raises, where a backend does it together with fetching.
_DECODING_ERRORS = (
    ContentDisallowed,
    SerializationError,
    SecurityError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    UnpicklingError,
)


class StoredState:
    """What is stored for one task.

    :ivar fingerprint: equal for equal states, and cheap to compare
    """

    __slots__ = ("_decode", "fingerprint", "task_id")

    def __init__(self, task_id: str, fingerprint: Any, decode: Callable[[], Any]) -> None:
        self.task_id = task_id
        self.fingerprint = fingerprint
        self._decode = decode

    def meta(self) -> Mapping[str, Any]:
        """The result meta. Raises whatever decoding raises: a file may be half written."""
        return check_meta(self._decode())


def check_meta(meta: Any) -> Mapping[str, Any]:
    """A result meta that has what its readers rely on.

    Raises ``ValueError`` where it has not, and the error of an `Undecodable`.
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
    if isinstance(backend, BaseKeyValueStoreBackend):
        for task_id, payload in zip(task_ids, _payloads(backend, task_ids), strict=True):
            if payload:
                yield StoredState(task_id, payload, partial(backend.decode_result, payload))
        return
    for task_id in task_ids:
        try:
            meta = backend.get_task_meta(task_id, cache=False)
        except _DECODING_ERRORS as error:
            yield StoredState(task_id, repr(error), partial(Undecodable, error))
            continue
        if meta.get("status") != states.PENDING:
            # Exceptions are made anew by each read, and compare unequal.
            yield StoredState(task_id, (meta.get("status"), repr(meta.get("result"))), partial(dict, meta))


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
