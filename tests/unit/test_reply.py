"""Bytes of a reply in, the state of a task out; nothing that a worker sends is trusted."""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import lzma
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, TaskRevokedError
from kombu.compression import compress
from kombu.serialization import dumps
from twisted.python.failure import Failure

from tests.support.process import ROOT
from tests.support.transport import bare_app
from twistedcelery import errors
from twistedcelery.encoding.app_view import OfflineBackend
from twistedcelery.errors import ReplyNotAccepted, ReplyTooLarge, ReplyUndecodable, TaskFailure
from twistedcelery.transports.decoding import FailureBackend, ReplyDecoder, outcome_of

META = {"status": "SUCCESS", "result": 5, "traceback": None, "children": [], "task_id": "id-1"}


class FailingBackend(FailureBackend, OfflineBackend):
    """One of Celery's backends with the exceptions of this package."""


def decoder(max_bytes: int = 1000, **settings: Any) -> ReplyDecoder:
    return ReplyDecoder(bare_app(**settings), max_bytes)


def decode(
    meta: Any = None, *, body: bytes | None = None, by: ReplyDecoder | None = None, **headers: Any
) -> dict[str, Any]:
    """Decode a reply of JSON."""
    encoded = json.dumps(META if meta is None else meta).encode() if body is None else body
    return (by or decoder()).decode(encoded, "application/json", "utf-8", headers)


def test_a_result():
    """A reply's meta is as Celery stores it."""
    assert decode() == META


@pytest.mark.parametrize("serializer", ["json", "yaml", "msgpack", "pickle"])
def test_serialisers(serializer):
    """Every serialiser of kombu's that the application accepts is read."""
    pytest.importorskip({"yaml": "yaml", "msgpack": "msgpack"}.get(serializer, serializer))
    content_type, encoding, body = dumps(META, serializer=serializer)
    data = body.encode() if isinstance(body, str) else body
    by = decoder(result_accept_content=[serializer])
    assert by.decode(data, content_type, encoding, {}) == META


# Exceptions


def test_a_failure_becomes_its_exception():
    """An exception whose class can be found is rebuilt."""
    failed = {
        **META,
        "status": "FAILURE",
        "result": {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"},
    }
    error = decode(failed)["result"]
    assert type(error) is ValueError
    assert error.args == ("no",)


def test_a_failure_whose_class_is_unknown_keeps_its_name():
    """An exception whose class cannot be imported becomes one of the same name and module."""
    failed = {
        **META,
        "status": "FAILURE",
        "result": {"exc_type": "Peculiar", "exc_message": ["no"], "exc_module": "not.here"},
    }
    error = decode(failed)["result"]
    assert isinstance(error, Exception)
    assert (type(error).__name__, type(error).__module__) == ("Peculiar", "not.here")
    assert error.args == ("no",)


@pytest.mark.parametrize("state", ["RETRY", "REVOKED"])
def test_retried_and_revoked_have_exceptions(state):
    """RETRY and REVOKED carry an exception too."""
    result = {
        "exc_type": "TaskRevokedError",
        "exc_message": ["terminated"],
        "exc_module": "celery.exceptions",
    }
    assert isinstance(decode({**META, "status": state, "result": result})["result"], TaskRevokedError)


#: What may be stored for a failed task besides an exception as Celery stores it.
NO_EXCEPTIONS = [
    {"exc_type": "system", "exc_message": ["true"], "exc_module": "os"},
    {"exc_type": 5, "exc_message": 5, "exc_module": 5},
    {"exc_message": ["no type"]},
    {"custom": "why", "code": 7},
    {"exc_type": "\0", "exc_message": [], "exc_module": "nowhere"},
    {},
    ["a", "list"],
    [],
    "text",
    "",
    5,
    None,
]


@pytest.mark.parametrize("state", ["FAILURE", "RETRY", "REVOKED"])
@pytest.mark.parametrize("result", NO_EXCEPTIONS, ids=repr)
def test_a_failure_that_is_no_exception(result, state):
    """What is stored for a failed task and is no exception is never called; the failure carries it."""
    meta = decode({**META, "status": state, "result": result})
    error = meta["result"]
    assert meta["status"] == state
    assert type(error) is TaskFailure
    assert error.stored == result
    assert state in str(error)
    # Some readers rebuild what is rebuilt already.
    assert FailingBackend(bare_app()).meta_from_decoded(dict(meta)) == meta


def test_a_failure_without_a_result():
    """A failed task needs no result; one that succeeded does."""
    error = decode(body=b'{"status": "FAILURE"}')["result"]
    assert type(error) is TaskFailure
    assert error.stored is None


def test_the_details_of_a_failure_that_is_no_exception():
    """What is stored names the exception, or else the error names itself."""
    named = TaskFailure("no", {"exc_type": "Odd", "exc_module": "somewhere", "exc_message": ["why"]})
    assert (named.exc_type, named.exc_module, named.exc_message) == ("Odd", "somewhere", "why")
    bare = TaskFailure("no", {"exc_type": 5, "exc_message": ["a", 1]})
    assert (bare.exc_type, bare.exc_module, bare.exc_message) == ("TaskFailure", errors.__name__, "no")
    again = copy.copy(named)
    assert (str(again), again.stored, again.exc_type) == ("no", named.stored, "Odd")


def test_a_large_value_is_not_all_of_a_message():
    """The text is cut; the value is not."""
    meta = {**META, "status": "FAILURE", "result": ["x" * 100_000]}
    error = decode(meta, by=decoder(max_bytes=200_000))["result"]
    assert len(str(error)) < 5_000
    assert error.stored == ["x" * 100_000]


def made_by(raising: Callable[[], object]) -> Any:
    """What the client makes of an exception that a worker has stored."""
    try:
        raising()
    except Exception as error:
        stored = bare_app().backend.prepare_exception(error)
    return decode({**META, "status": "FAILURE", "result": stored})["result"]


def test_an_exception_that_celery_cannot_make_again():
    """It keeps its name, its module and its message; Celery's own client has a bare `Exception`."""
    error = made_by(lambda: json.loads("{"))
    assert isinstance(error, Exception)
    assert (type(error).__name__, type(error).__module__) == ("JSONDecodeError", "json.decoder")
    assert str(error).startswith("Expecting property name")


def test_an_exception_without_a_constructor():
    """That of pydantic cannot be made by anybody, and has no arguments."""
    pydantic = pytest.importorskip("pydantic")
    error = made_by(lambda: pydantic.TypeAdapter(int).validate_python("x"))
    assert (type(error).__name__, type(error).__module__) == (
        "ValidationError",
        pydantic.ValidationError.__module__,
    )


def test_exceptions_that_celery_can_make_again_are_made_by_it():
    """Also where they have moved, and where they are Celery's own or a bare `Exception`."""

    def result(exc_type: str, exc_module: str | None) -> Any:
        stored = {"exc_type": exc_type, "exc_message": ["no"], "exc_module": exc_module}
        return decode({**META, "status": "FAILURE", "result": stored})["result"]

    assert type(result("TimeoutError", "asyncio.exceptions")) is TimeoutError
    assert type(result("Ignore", "celery.exceptions")) is Ignore
    assert type(result("Exception", "builtins")) is Exception
    assert type(result("Odd", None)).__name__ == "Odd"


@pytest.mark.parametrize("state", ["IGNORED", "REJECTED"])
def test_an_end_that_is_no_success(state):
    """It is a failure of Celery's name, with what was stored."""
    outcome = outcome_of({**META, "status": state, "result": "why"})
    assert isinstance(outcome, Failure)
    assert type(outcome.value) is {"IGNORED": Ignore, "REJECTED": Reject}[state]
    assert outcome.value.args[0] == "why"


# Content types


def test_a_content_type_that_is_not_accepted():
    """A pickle is not even looked at where JSON is accepted, and the error says what is."""

    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("the pickle was loaded",)

    with pytest.raises(ReplyNotAccepted, match=r"application/x-python-serialize.*json"):
        decoder().decode(pickle.dumps(Bomb()), "application/x-python-serialize", "binary", {})


def test_result_accept_content_comes_before_accept_content():
    """What results may be is set apart from what tasks may be."""
    by = decoder(accept_content=["json"], result_accept_content=["yaml"])
    with pytest.raises(ReplyNotAccepted):
        decode(by=by)


def test_accept_content_counts_where_nothing_else_is_set():
    """Without ``result_accept_content`` results may be what tasks may be."""
    with pytest.raises(ReplyNotAccepted):
        decode(by=decoder(accept_content=["yaml"]))


# Nonsense


@pytest.mark.parametrize(
    ("body", "content_type", "encoding"),
    [
        (b"{not json", "application/json", "utf-8"),
        (b"\xff\xfe", "application/json", "utf-8"),
        (b"{}", "application/json", "no-such-encoding"),
        (b"", "application/json", "utf-8"),
        (b"anything", None, None),
        (b"anything", "text/plain", "utf-8"),
        pytest.param(b"[" * 100_000, "application/json", "utf-8", id="nested"),
    ],
)
def test_a_body_that_is_no_reply(body, content_type, encoding):
    """Bytes that cannot be read are a named error, whatever the serialiser says of them."""
    with pytest.raises((ReplyUndecodable, ReplyNotAccepted)):
        decoder(max_bytes=1_000_000).decode(body, content_type, encoding, {})


@pytest.mark.parametrize(
    "meta",
    [None, 5, "text", [META], {}, {"status": "SUCCESS"}, {"result": 5}, {"status": 5, "result": 5}],
)
def test_data_that_is_no_result(meta):
    """What is valid JSON and no result meta is undecodable."""
    with pytest.raises(ReplyUndecodable):
        decode(body=json.dumps(meta).encode())


# Compression


@pytest.mark.parametrize("method", ["gzip", "bzip2", "lzma"])
def test_compressed_replies(method):
    """What kombu compresses is opened."""
    body, content_type = compress(json.dumps(META).encode(), method)
    assert decode(body=body, compression=content_type) == META


@pytest.mark.parametrize(
    ("content_type", "bomb"),
    [
        ("application/x-gzip", zlib.compress(b"0" * 10_000_000)),
        ("application/x-bz2", bz2.compress(b"0" * 10_000_000)),
        ("application/x-lzma", lzma.compress(b"0" * 10_000_000)),
    ],
)
def test_a_reply_that_grows_too_large(content_type, bomb):
    """A small body that would become a large one is refused."""
    with pytest.raises(ReplyTooLarge, match="1000"):
        decode(body=bomb, compression=content_type)


def test_a_reply_that_is_too_large(monkeypatch):
    """It is refused by its size, before anything reads it."""
    body = json.dumps({**META, "result": "x" * 1000}).encode()
    monkeypatch.setattr("twistedcelery.transports.decoding.loads", None)
    with pytest.raises(ReplyTooLarge, match=f"{len(body)} bytes; the client's max_reply_bytes allows 1000"):
        decode(body=body)


def test_a_reply_of_exactly_the_limit():
    """The limit is what is still allowed."""
    plain = json.dumps(META).encode()
    body = zlib.compress(plain)
    assert decode(body=body, by=decoder(len(plain)), compression="application/x-gzip") == META
    with pytest.raises(ReplyTooLarge):
        decode(body=body, by=decoder(len(plain) - 1), compression="application/x-gzip")


@pytest.mark.parametrize(
    ("compression", "body"),
    [
        ("application/x-gzip", b"no gzip"),
        ("application/x-gzip", gzip.compress(b"a gzip file, which kombu does not make", mtime=0)),
        ("application/x-gzip", zlib.compress(b"0123456789" * 20)[:-12]),
        ("application/x-unknown", b"?"),
        (["a", "list"], b"?"),
        (5, b"?"),
        ({}, b"?"),
    ],
)
def test_compression_that_is_none(compression, body):
    """A header can claim anything, and can be of any type."""
    with pytest.raises(ReplyUndecodable):
        decode(body=body, compression=compression)


@pytest.mark.parametrize(
    "value",
    [
        {"__type__": "nothing", "__value__": 1},
        {"__type__": [], "__value__": 1},
        {"__type__": "datetime", "__value__": "yesterday"},
        {"__type__": "uuid", "__value__": None},
        {"a": [{"__type__": "decimal", "__value__": "x"}], "b": 1},
    ],
)
def test_a_mark_that_is_none(value):
    """Kombu's JSON encodes it and refuses to decode it: it stays what the task returned, or reported."""
    for status in ("SUCCESS", "PROGRESS"):
        meta = {**META, "status": status, "result": value}
        assert decode(meta) == meta
        assert FailingBackend(bare_app()).decode(json.dumps(meta)) == meta
    beside = {"right": {"__type__": "bytes", "__value__": "x"}, "wrong": value}
    assert decode({**META, "result": beside})["result"] == {"right": b"x", "wrong": value}


def test_a_mark_that_is_none_in_a_compressed_state():
    """Celery's backends compress a stored state as a whole."""
    compress = pytest.importorskip("celery.backends.base").__dict__.get("compress_payload")
    if compress is None:
        pytest.skip("this Celery does not compress stored states")
    meta = {**META, "result": {"__type__": "nothing", "__value__": 1}}
    assert FailingBackend(bare_app()).decode(compress(json.dumps(meta), "zlib")) == meta


# Settings


@pytest.mark.parametrize(("expires", "seconds"), [(60, 60), (None, None)])
def test_expires_is_result_expires(expires, seconds):
    """``result_expires`` in seconds; ``None`` where results are kept for ever."""
    assert decoder(result_expires=expires).expires == seconds


def test_a_nested_reply_where_the_process_allows_deep_recursion():
    """py_ecc, which Crossbar imports, allows 100,000 levels: more than a decoder in C has stack for."""
    program = """
import sys
from celery import Celery
from twistedcelery.errors import ReplyUndecodable
from twistedcelery.transports.decoding import ReplyDecoder

sys.setrecursionlimit(100_000)
try:
    ReplyDecoder(Celery("unit")).decode(b"[" * 1_000_000, "application/json", "utf-8", {})
except ReplyUndecodable:
    print("refused", sys.getrecursionlimit())
"""
    path = f"{ROOT}:{ROOT}/component"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "refused 100000\n"), done.stderr
