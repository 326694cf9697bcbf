"""Serves a Celery application's tasks on a WAMP router. Only this folder imports Autobahn.

Read `session` first, then `bridge`, which wires the rest. Folders import each other from left to right
only, and the modules that all of them share are below::

    process ─► session ─► bridge ─┬─► callers ─► tasks ─► events
                             │    ├─► operators
                             └────┴─► router

    invocation   context   interfaces   errors   config   options   event_kinds   task_ids   uris   values
"""

from twistedcelery.wamp.session import CeleryBridge

__all__ = ["CeleryBridge"]
