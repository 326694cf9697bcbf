"""What WAMP carries of a task's values: the same in each serialisation, as result, progress and event."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions

from tests.support.taskapp import RESULTS

pytestmark = pytest.mark.usefixtures("worker_process")

#: What becomes of a value that can be carried; those that are not here are refused.
CARRIED: dict[str, Any] = {
    "datetime": "2024-02-29T12:30:00+00:00",
    "date": "2024-02-29",
    "uuid": "00000000-0000-4000-8000-000000000001",
    "decimal": "0.10000000000000000001",
    "bytes": b"\x89PNG",
    "tuple": [1, [2, 3]],
    "integer keys": {"1": "one", "2": "two"},
    **{kind: RESULTS[kind] for kind in ("largest", "smallest", "float", "text", "nul key", "mark")},
}
#: Values that Celery's own JSON does not carry, or that take too long for a table.
ELSEWHERE = {"object", "17 MiB"}


@pytest.mark.parametrize("serializer", ["json", "msgpack", "cbor"])
@pytest_twisted.ensureDeferred
async def test_the_same_in_every_serialisation(serializer, router, bridge, client):
    """Each value is carried in the documented form or refused, alike in all places; others go on."""
    running = await bridge(router.url, publish_results=True)
    caller, bystander = await client(router.url, serializer), await client(router.url)
    events = await caller.events(running.uri("taskapp.report"), match="prefix")
    seen: dict[str, Any] = {}
    for kind in RESULTS.keys() - ELSEWHERE:
        progress: list[Any] = []
        options = CallOptions(on_progress=lambda state, meta, progress=progress: progress.append(meta))
        try:
            result = await caller.call(running.uri("taskapp.report"), kind, options=options)
        except ApplicationError as error:
            topic, payload = await events.get()
            assert (topic, "result" in payload) == (running.uri("taskapp.report.succeeded"), False)
            seen[kind] = (error.error.removeprefix(f"{running.prefix}.error."), progress)
        else:
            topics = [await events.get(), await events.get()]
            seen[kind] = (
                result,
                progress,
                [payload.get("meta", payload.get("result")) for _, payload in topics],
            )
        assert await bystander.call(running.uri("taskapp.add"), 2, 3) == 5
    assert not events.pending
    assert seen == {
        kind: (CARRIED[kind], [CARRIED[kind]], [CARRIED[kind]] * 2)
        if kind in CARRIED
        else ("result_unencodable", [])
        for kind in RESULTS.keys() - ELSEWHERE
    }
