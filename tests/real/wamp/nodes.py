"""Crossbar.io configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TICKET", "TICKET_VARIABLE", "node_config"]

#: The bridge's secret, and the variable that the router reads it from.
TICKET = "only for tests"
TICKET_VARIABLE = "TWISTEDCELERY_TEST_TICKET"


def node_config(port: int, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A node with a router and, where ``extra`` is given, the bridge in a container."""
    caller = {"uri": "", "match": "prefix", "allow": {"call": True, "subscribe": True, "publish": True}}
    everything = {"call": True, "register": True, "publish": True, "subscribe": True}
    bridge = {"uri": "", "match": "prefix", "allow": everything}
    principals = {"bridge": {"ticket": f"${{{TICKET_VARIABLE}}}", "role": "bridge"}}
    workers: list[dict[str, Any]] = [
        {
            "type": "router",
            "realms": [
                {
                    "name": "realm1",
                    "roles": [
                        {
                            "name": "caller",
                            "permissions": [{**caller, "disclose": {"caller": True, "publisher": True}}],
                        },
                        {"name": "bridge", "permissions": [bridge]},
                    ],
                }
            ],
            "transports": [
                {
                    "type": "web",
                    "endpoint": {"type": "tcp", "interface": "127.0.0.1", "port": port},
                    "paths": {
                        "/": {"type": "json", "value": {}},
                        "ws": {
                            "type": "websocket",
                            "serializers": ["cbor", "msgpack", "json"],
                            "auth": {
                                "anonymous": {"type": "static", "role": "caller"},
                                "ticket": {"type": "static", "principals": principals},
                            },
                        },
                    },
                }
            ],
        }
    ]
    if extra is not None:
        endpoint = {"type": "tcp", "host": "127.0.0.1", "port": port}
        component = {
            "type": "class",
            "classname": "twistedcelery.wamp.CeleryBridge",
            "realm": "realm1",
            "extra": dict(extra),
            "transport": {
                "type": "websocket",
                "url": f"ws://127.0.0.1:{port}/ws",
                "endpoint": endpoint,
                "serializers": ["msgpack"],
            },
        }
        workers.append(
            {"type": "container", "options": {"restart": "restart-always"}, "components": [component]}
        )
    return {"version": 2, "workers": workers}
