"""The demo application's tasks, run in place."""

from __future__ import annotations

import importlib
import struct
import sys
import zlib
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module of tasks. It is imported only here, since it makes directories for its broker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_APP_DATA", str(tmp_path_factory.mktemp("my_app")))
        patch.delenv("CELERY_BROKER_URL", raising=False)
        patch.delenv("CELERY_RESULT_BACKEND", raising=False)
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_app"]:
            patch.delitem(sys.modules, name)
        return importlib.import_module("my_app.tasks")


def pixels(png: bytes) -> tuple[int, list[bytes]]:
    """Width and rows of a PNG of 8 bits RGB without filters, each chunk's checksum checked."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    rest, chunks = png[8:], {}
    while rest:
        length, kind = struct.unpack_from(">I4s", rest)
        data, checksum = rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert struct.pack(">I", zlib.crc32(kind + data)) == checksum
        chunks[kind] = data
        rest = rest[12 + length :]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert form == [8, 2, 0, 0, 0]
    raw = zlib.decompress(chunks[b"IDAT"])
    rows = [raw[start : start + 1 + 3 * width] for start in range(0, len(raw), 1 + 3 * width)]
    assert len(rows) == height
    assert all(row[:1] == b"\0" for row in rows)
    return width, [row[1:] for row in rows]


def test_add(tasks: ModuleType) -> None:
    """It returns the sum."""
    assert tasks.add(2, 3) == 5


def test_countdown(tasks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reports each step and returns the number of steps."""
    states: list[Any] = []
    monkeypatch.setattr(tasks.countdown, "update_state", lambda **state: states.append(state))
    assert tasks.countdown(3, delay=0) == 3
    assert states == [{"state": "PROGRESS", "meta": {"current": n, "total": 3}} for n in (1, 2, 3)]


def test_fail(tasks: ModuleType) -> None:
    """It raises what it was told."""
    with pytest.raises(ValueError, match="on purpose"):
        tasks.fail("on purpose")


def test_mandelbrot(tasks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws a picture of the size asked for, the set itself in black, and reports its rows."""
    states: list[Any] = []
    monkeypatch.setattr(tasks.mandelbrot, "update_state", lambda **state: states.append(state))
    monkeypatch.setattr(tasks, "REPORT_INTERVAL", 0)
    width, rows = pixels(tasks.mandelbrot(-0.6, 0, 2.6, 30, 20, 50))
    assert (width, len(rows)) == (30, 20)
    assert rows[10][15 * 3 : 16 * 3] == b"\0\0\0"
    assert any(map(any, rows))
    assert [state["meta"] for state in states] == [{"current": n, "total": 20} for n in range(1, 21)]


@pytest.mark.parametrize(
    "size",
    [
        {"width": 0, "height": 10},
        {"width": 10, "height": -1},
        {"width": 2048, "height": 2048},
        {"iterations": 0},
        {"iterations": 10_001},
    ],
)
def test_mandelbrot_out_of_bounds(tasks: ModuleType, size: dict[str, int]) -> None:
    """It refuses a picture that would keep a worker busy for minutes, and one without a point."""
    with pytest.raises(ValueError, match="1 to"):
        tasks.mandelbrot(**size)
