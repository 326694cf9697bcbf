"""A Celery application's tasks on a WAMP router. The only part of the package that imports Autobahn.

A newcomer reads `session` first, then `bridge`, which wires the rest::

    session ─ bridge ─┬─ calls ─ in_flight ─ followed ─ topics
                      ├─ api ─ known_tasks   neighbours   stored   values
                      ├─ operator_api ─ worker_commands
                      ├─ discovery ─ announced
                      └─ exposed   procedures   config   errors   uris
"""

from twistedcelery.wamp.session import CeleryBridge

__all__ = ["CeleryBridge"]
