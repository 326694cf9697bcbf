"""What Celery's own blocking client makes of the canvases. A program of its own.

Its result backends clean up whenever the garbage collector comes by, which in the tests' process
would be after their servers are gone.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from celery.canvas import Signature

from tests.real.canvas.cases import KEPT, PLAIN, Case
from tests.support.canvasapp import app

__all__ = ["LIMIT", "described"]

#: Seconds that a client may take for one canvas.
LIMIT = 20


def described(outcome: Any) -> list[str]:
    """A value or an exception, to be compared."""
    if isinstance(outcome, BaseException):
        return [type(outcome).__name__, str(outcome)]
    return [repr(outcome)]


def run(case: Case) -> Any:
    canvas = case.make(app)
    if not isinstance(canvas, Signature):
        canvas = Signature.from_dict(canvas, app=app)
    result = canvas.apply_async(case.args, **case.options)
    try:
        return result.get(timeout=LIMIT, interval=0.05)
    except Exception as error:
        return error


if __name__ == "__main__":
    wanted = set(sys.argv[1:])
    outcomes = {case.name: described(run(case)) for case in PLAIN + KEPT if case.name in wanted}
    sys.stdout.write(json.dumps(outcomes))
