"""Every broker kombu knows and every result backend Celery knows, on their own blocking code.

Two dedicated threads serve all calls together: one publishes, one waits for results. A third one
starts when control commands or events are used, and consumes their queues. Each has a part on the
reactor's side (`publisher`, `results`, `subscriber`) and a part in its thread (`sender`, `fetcher`,
`listener`); `thread` is what carries work from one to the other.
"""

from __future__ import annotations

from twistedcelery.transports.threads.publisher import ThreadedPublisher
from twistedcelery.transports.threads.results import ThreadedResults

__all__ = ["ThreadedPublisher", "ThreadedResults"]
