"""What the demo application can do."""

import time
from typing import Any

from celery import Task

from my_app import png
from my_app.celery import app

#: At most one progress report in so many seconds from a task that works without pause.
REPORT_INTERVAL = 0.1

#: Points of a picture, at most: some seconds of work.
MAX_POINTS = 1024 * 1024


@app.task
def add(x: float, y: float) -> float:
    """Return x + y."""
    return x + y


@app.task(bind=True)
def countdown(self: Task[Any, Any], n: int, delay: float = 0.1) -> int:
    """Take n steps, each of delay seconds, report each as progress, and return n."""
    for step in range(1, n + 1):
        time.sleep(delay)
        report(self, step, n)
    return n


@app.task
def fail(message: str) -> None:
    """Raise ValueError(message)."""
    raise ValueError(message)


@app.task(bind=True)
def mandelbrot(
    self: Task[Any, Any],
    x: float = -0.6,
    y: float = 0.0,
    scale: float = 2.6,
    width: int = 640,
    height: int = 480,
    iterations: int = 200,
) -> bytes:
    """Draw the Mandelbrot set around (x, y), scale high, and return the picture as PNG."""
    if not (width > 0 and height > 0 and width * height <= MAX_POINTS):
        raise ValueError(f"a picture has 1 to {MAX_POINTS} points, not {width} x {height}")
    if not 1 <= iterations <= 10_000:
        raise ValueError(f"iterations must be 1 to 10000, not {iterations}")
    step = scale / height
    colours = [colour(((n + 1) / (iterations + 1)) ** 0.5) for n in range(iterations)] + [(0, 0, 0)]
    rows: list[bytes] = []
    reported = time.monotonic()
    for row in range(height):
        imaginary = y + (height / 2 - row) * step
        rows.append(
            bytes(
                channel
                for column in range(width)
                for channel in colours[escape(x + (column - width / 2) * step, imaginary, iterations)]
            )
        )
        if time.monotonic() - reported >= REPORT_INTERVAL:
            reported = time.monotonic()
            report(self, row + 1, height)
    return png.encode(width, rows)


def report(task: Task[Any, Any], current: int, total: int) -> None:
    """Set the state ``PROGRESS``, which every client of the result backend can watch."""
    task.update_state(state="PROGRESS", meta={"current": current, "total": total})


def escape(real: float, imaginary: float, iterations: int) -> int:
    """How many steps the point takes to leave the circle of radius 2, or ``iterations`` if it stays."""
    a, b = real, imaginary
    for n in range(iterations):
        aa, bb = a * a, b * b
        if aa + bb > 4.0:
            return n
        b = 2.0 * a * b + imaginary
        a = aa - bb + real
    return iterations


def colour(share: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255: black at 0 and 1, by way of blue, yellow and brown."""
    rest = 1.0 - share
    return (
        int(9 * rest * share**3 * 255),
        int(15 * rest**2 * share**2 * 255),
        int(8.5 * rest**3 * share * 255),
    )
