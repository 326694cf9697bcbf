"""Decodes the state of a task from a reply or a stored result, and says what a final state means.

Workers on the ``rpc://`` backend send each state as a message whose payload is the result meta
that Celery's other backends store: ``status``, ``result``, ``traceback``, ``children``,
``task_id`` (``celery.backends.rpc.RPCBackend._to_result``).
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import celery.exceptions
import kombu.exceptions
from celery import states
from celery.backends import base
from celery.exceptions import Ignore, Reject
from celery.utils.saferepr import saferepr
from celery.utils.serialization import create_exception_cls
from kombu.serialization import loads
from kombu.utils import json
from kombu.utils.json import object_hook
from twisted.python.failure import Failure

from twistedcelery.encoding.app_view import OfflineBackend
from twistedcelery.errors import ReplyNotAccepted, ReplyTooLarge, ReplyUndecodable, TaskFailure

__all__ = [
    "FINAL_STATES",
    "MAX_REPLY_BYTES",
    "MAX_UNEXPECTED_BYTES",
    "FailureBackend",
    "ReplyDecoder",
    "Undecodable",
    "check_meta",
    "limited_recursion",
    "outcome_of",
    "raisable",
]

#: States after which nothing follows. Celery's ``READY_STATES`` lacks the two that no backend
#: stores but that a worker may report.
FINAL_STATES = frozenset({*states.READY_STATES, states.IGNORED, states.REJECTED})

_JSON = "application/json"

#: Opens a compressed state, and returns others as they are. Celery 5.7 began with it.
_decompressed: Callable[[Any], Any] = getattr(base, "decompress_payload", lambda payload: payload)

#: What a reply may have in bytes, also decompressed, unless the client is told another limit.
MAX_REPLY_BYTES = 256 * 1024 * 1024

#: What a compressed reply that no call waits for may have when it is decompressed. It may have cost its
#: sender a thousandth of that: 50 KB that become 50 MB would keep the reactor busy for half a second.
MAX_UNEXPECTED_BYTES = 1024 * 1024

#: What a stored value may add to the text of an error, in characters.
_MAX_TEXT = 1024

#: Far above Python's own limit of 1,000, and far below what the C stack of a thread can bear.
_MAX_RECURSION = 5_000


class Undecodable(dict[str, Any]):
    """Takes the place of a meta that cannot be decoded, where an exception would break a connection.

    :ivar error: what decoding raised
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(status=None, task_id=None)
        self.error = error


def check_meta(meta: Any) -> Mapping[str, Any]:
    """A result meta that has what its readers rely on.

    :raises ValueError: it has not
    :raises Exception: the error of an `Undecodable`
    """
    if isinstance(meta, Undecodable):
        raise meta.error
    if isinstance(meta, Mapping):
        status = meta.get("status")
        # `FailureBackend` supplies what a failure lacks.
        if isinstance(status, str) and ("result" in meta or status in states.EXCEPTION_STATES):
            return meta
    raise ValueError(f"{type(meta).__name__}, not a task result: a mapping with 'status' and 'result'")


def _tolerant(decode: Callable[[Any], Any], body: Any, content_type: str | None) -> Any:
    """Decode what a worker has sent, also with marks that are none.

    A task may return ``{"__type__": "x", "__value__": 1}``, which kombu's JSON encodes as it is and refuses
    to decode. Then it stays what the task returned.

    :param decode: kombu's or Celery's way
    """
    try:
        return decode(body)
    except kombu.exceptions.ContentDisallowed:
        raise
    except Exception:
        if content_type == _JSON:
            # What is no JSON at all fails again; the first error is the better one.
            with suppress(Exception):
                return json.loads(_decompressed(body), object_hook=_as_it_was_sent)
        raise


def _as_it_was_sent(mapping: dict[str, Any]) -> Any:
    try:
        return object_hook(mapping)
    except Exception:
        # A mark that kombu does not know, or whose value does not fit it.
        return mapping


class FailureBackend:
    """A result backend that reads whatever a worker can store; mix it into one of Celery's.

    Celery's own raises where what is stored for a failed task is no exception, or where a value has a mark
    that kombu's JSON does not know. For a class that cannot be made again it gives an exception of another
    name or module.
    """

    def decode(self, payload: Any) -> Any:
        """As Celery's, with marks that cannot be decoded left as they are."""
        return _tolerant(super().decode, payload, self.content_type)  # type: ignore[misc, attr-defined]

    def meta_from_decoded(self, meta: Any) -> Any:
        """Put the exception into a result meta."""
        if not isinstance(meta, dict) or meta.get("status") not in states.EXCEPTION_STATES:
            return super().meta_from_decoded(meta)  # type: ignore[misc]  # of the class mixed into
        stored = meta.get("result")
        try:
            error = self._rebuild(stored)
        except Exception:
            # Anything may be stored, and a class of the user's may raise anything.
            error = None
        if not isinstance(error, BaseException):
            error = _no_exception(meta["status"], stored)
        meta["result"] = error
        return meta

    def _rebuild(self, stored: Any) -> Any:
        error = self.exception_to_python(stored)  # type: ignore[attr-defined]  # of the class mixed into
        if not isinstance(stored, Mapping):
            return error
        name, module = stored["exc_type"], stored.get("exc_module")
        if module is None or not _is_stand_in(error, name, module):
            return error
        message = stored.get("exc_message", "")
        args = message if isinstance(message, list | tuple) else (message,)
        return create_exception_cls(name, module)(*args)


def _is_stand_in(error: Any, name: str, module: str) -> bool:
    """Whether Celery found no class of that name, or could not make the exception."""
    cls = type(error)
    if cls is Exception:
        return name != "Exception"
    celerys = celery.exceptions.__name__
    return cls.__module__ == celerys != module and getattr(celery.exceptions, name, None) is not cls


def _no_exception(state: str, stored: Any) -> TaskFailure:
    text = saferepr(stored, maxlen=_MAX_TEXT)
    return TaskFailure(f"the task's state {state} was stored with {text}, which is no exception", stored)


@contextmanager
def limited_recursion() -> Iterator[None]:
    """Decode what others have sent with a limit on nesting that the C stack can bear.

    Importing Crossbar imports py_ecc, which raises the process's recursion limit to 100,000. Under that
    limit a decoder in C overflows the stack at some 50,000 brackets, which ends the process.
    """
    limit = sys.getrecursionlimit()
    if limit <= _MAX_RECURSION:
        yield
        return
    sys.setrecursionlimit(_MAX_RECURSION)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


#: Content types of kombu.compression that can be opened piece by piece, which a limit needs.
_DECOMPRESSORS: Mapping[str, Callable[[], _Decompressor]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
    "application/x-xz": lzma.LZMADecompressor,
}


class _DecodingBackend(FailureBackend, OfflineBackend):
    """Knows which content types are accepted, and rebuilds exceptions."""


class ReplyDecoder:
    """Decodes replies as one application accepts them.

    :param app: the Celery application; ``result_accept_content``, or else ``accept_content``,
        says which content types may be decoded
    :param max_bytes: what a reply may have, also decompressed
    """

    def __init__(self, app: Any, max_bytes: int = MAX_REPLY_BYTES) -> None:
        self._backend = _DecodingBackend(app)
        self._max_bytes = max_bytes

    @property
    def expires(self) -> float | None:
        """Seconds that results are kept (``result_expires``); ``None``: for ever."""
        seconds: float | None = self._backend.expires
        return seconds

    def decode(
        self,
        body: bytes,
        content_type: str | None,
        content_encoding: str | None,
        headers: Mapping[str, Any],
        *,
        is_expected: bool = True,
    ) -> dict[str, Any]:
        """Decode one reply.

        :param is_expected: whether a call waits for it. Then a compressed one may have ``max_bytes``, and
            otherwise `MAX_UNEXPECTED_BYTES`.
        :return: the result meta, with exceptions rebuilt as ``AsyncResult.get()`` would see them
        :raises ReplyNotAccepted: for a content type that the application does not accept
        :raises ReplyTooLarge: for a reply past the limit, which is not decoded
        :raises ReplyUndecodable: for anything else that is no result meta
        """
        if len(body) > self._max_bytes:
            raise ReplyTooLarge(
                f"the reply has {len(body)} bytes; the client's max_reply_bytes allows {self._max_bytes}"
            )
        compression = headers.get("compression")
        if compression is not None:
            limit = self._max_bytes if is_expected else min(self._max_bytes, MAX_UNEXPECTED_BYTES)
            body = _decompress(body, compression, limit)
        try:
            with limited_recursion():
                meta = _tolerant(
                    partial(
                        loads,
                        content_type=content_type,
                        content_encoding=content_encoding,
                        accept=self._backend.accept,
                    ),
                    body,
                    content_type,
                )
        except kombu.exceptions.ContentDisallowed as error:
            accepted = ", ".join(sorted(self._backend.accept))
            raise ReplyNotAccepted(
                f"the reply has content type {content_type!r}; result_accept_content allows {accepted}"
            ) from error
        except Exception as error:
            # Serialisers are plug-ins: what they raise for bad bytes is theirs to choose.
            raise ReplyUndecodable(f"the reply is not valid {content_type!r}: {error}") from error
        try:
            check_meta(meta)
        except ValueError as error:
            raise ReplyUndecodable(f"the reply is {error}") from error
        decoded: dict[str, Any] = self._backend.meta_from_decoded(meta)
        return decoded


def _decompress(body: bytes, compression: Any, max_bytes: int) -> bytes:
    # A header can be anything that AMQP has, also what no dictionary takes as a key.
    make = _DECOMPRESSORS.get(compression) if isinstance(compression, str) else None
    if make is None:
        raise ReplyUndecodable(f"the reply is compressed with {compression!r}, which is not supported")
    try:
        opened = make().decompress(body, max_bytes + 1)
    except Exception as error:
        raise ReplyUndecodable(f"the reply is not valid {compression!r}: {error}") from error
    if len(opened) > max_bytes:
        raise ReplyTooLarge(f"the reply would decompress to more than {max_bytes} bytes, its limit")
    return opened


def outcome_of(meta: Mapping[str, Any]) -> Any:
    """The outcome of a task that has ended.

    :param meta: a final state as Celery stores it
    :return: the value, or a `Failure` with what ``AsyncResult.get()`` would have raised. A task that was
        ignored or rejected, for which that waits for ever, is a failure too.
    """
    state, result = meta["status"], meta["result"]
    if state in states.PROPAGATE_STATES:
        if not isinstance(result, BaseException):
            result = _no_exception(state, result)
        return Failure(raisable(result))
    if state == states.IGNORED:
        return Failure(Ignore(result))
    return Failure(Reject(result)) if state == states.REJECTED else result


def raisable(error: BaseException) -> Exception:
    """A task's exception, or one of the same name that cannot stop a reactor or a generator.

    A reply may name any class that is imported: ``SystemExit``, or the exception by which
    ``inlineCallbacks`` returns a value.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    cls = type(error)
    stand_in: Exception = create_exception_cls(cls.__name__, cls.__module__)(*error.args)
    return stand_in
