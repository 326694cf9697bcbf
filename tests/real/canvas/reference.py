"""What Celery's own blocking client makes of the canvases. A program of its own.

Its result backends clean up whenever the garbage collector comes by, which in the tests' process
would be after their servers are gone.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from celery.canvas import Signature

from tests.real.canvas.cases import FROZEN, KEPT, PLAIN, PROCESSES, REFUSED, REPLACED, Case
from tests.support.canvasapp import app

__all__ = ["LIMIT", "described", "shape_of"]

#: Seconds that a client may take for one canvas.
LIMIT = 20


def described(outcome: Any) -> list[str]:
    """A value or an exception, to be compared."""
    if not isinstance(outcome, BaseException):
        return [repr(outcome)]
    try:
        text = str(outcome)
    except RuntimeError as error:
        text = repr(error)
    # Ids of tasks, and the numbers of a pool's jobs.
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|Job: \d+", "...", text)
    cls = type(outcome)
    return [f"{cls.__module__}.{cls.__qualname__}", text, repr(outcome.__cause__)]


def shape_of(result: Any) -> Any:
    """Parents and members of a result, as ``as_tuple()`` gives it, without the ids."""
    (_id, parent), members = result
    return [parent and shape_of(parent), members and [shape_of(member) for member in members]]


def run(case: Case) -> list[Any]:
    canvas = case.make(app)
    if not isinstance(canvas, Signature):
        canvas = Signature.from_dict(canvas, app=app)
    try:
        result = canvas.apply_async(case.args, **case.options)
    except Exception as refused:
        return [described(refused), None]
    try:
        outcome = result.get(timeout=LIMIT, interval=0.05)
    except (Exception, SystemExit) as error:
        # A task may raise SystemExit.
        outcome = error
    return [described(outcome), shape_of(result.as_tuple())]


if __name__ == "__main__":
    wanted = set(sys.argv[1:])
    cases = PLAIN + FROZEN + REFUSED + KEPT + REPLACED + PROCESSES
    outcomes = {case.name: run(case) for case in cases if case.name in wanted}
    sys.stdout.write(json.dumps(outcomes))
