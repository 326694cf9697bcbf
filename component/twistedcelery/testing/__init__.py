"""What users test their own code with: a transport in memory, and a pytest fixture.

::

    transport = MemoryTransport()
    tx_app = TwistedCelery(app, Clock(), transport=transport)
    call = tx_app.send_task("my_app.tasks.add", args=(2, 3))
    (task,) = transport.sent
    assert task.args == (2, 3)
    task.succeed(5)
    assert call.result == 5

`twistedcelery.testing.plugin` has the fixture.
"""

from __future__ import annotations

from twistedcelery.transports.memory import MemoryTransport, SentTask

__all__ = ["MemoryTransport", "SentTask"]
