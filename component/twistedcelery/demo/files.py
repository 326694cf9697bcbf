"""Finds the node's configuration and the demo application, in a checkout and in an installed package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["find", "node_config", "secret_variables"]

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parents[2]

#: The wheel holds a copy of the checkout's files there, at the same paths; see ``pyproject.toml``.
_SHIPPED = _HERE / "shipped"


def find() -> Path:
    """The folder with ``crossbar/.crossbar/config.json`` and ``demo/my_app``."""
    return _SHIPPED if _SHIPPED.is_dir() else _CHECKOUT


def node_config(root: Path, port: int) -> dict[str, Any]:
    """The shipped ``config.json``, changed to run in any directory and on another port.

    :param root: as `find` returns it
    :param port: where the router listens, on 127.0.0.1
    """
    path = root / "crossbar" / ".crossbar" / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    router, container = config["workers"]
    [transport] = router["transports"]
    shipped = transport["endpoint"]["port"]
    transport["endpoint"]["port"] = port
    options = transport["paths"]["ws"]["options"]
    options["allowed_origins"] = [
        origin.replace(f":{shipped}", f":{port}") for origin in options["allowed_origins"]
    ]
    container["options"]["pythonpath"] = [
        str((path.parent / folder).resolve()) for folder in container["options"]["pythonpath"]
    ]
    for component in container["components"]:
        component["transport"]["endpoint"]["port"] = port
        component["transport"]["url"] = component["transport"]["url"].replace(f":{shipped}", f":{port}")
    return config


def secret_variables(config: dict[str, Any]) -> list[str]:
    """The environment variables from which a node with this configuration reads its secrets."""
    router = config["workers"][0]
    return [name for component in router["components"] for name in component["extra"]["secrets"]]
