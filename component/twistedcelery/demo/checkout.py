"""The files of the demo, which are in the project's checkout and not in the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["DemoError", "find", "node_config", "secret_variables"]

_CONFIG = Path("crossbar", ".crossbar", "config.json")
_APPLICATION = Path("demo", "my_app")


class DemoError(Exception):
    """The demo cannot run. The message is what its user reads."""


def find() -> Path:
    """The root of the checkout: the working directory, or where this package's source is.

    :raise DemoError: if neither is one
    """
    candidates = [Path.cwd(), Path(__file__).resolve().parents[3]]
    for candidate in candidates:
        if (candidate / _CONFIG).is_file() and (candidate / _APPLICATION).is_dir():
            return candidate
    looked = " or ".join(str(candidate) for candidate in candidates)
    raise DemoError(
        f"the demo runs from a checkout of the project, which the installed package does not contain: "
        f"there is no {_CONFIG} with {_APPLICATION} in {looked}"
    )


def node_config(checkout: Path, port: int) -> dict[str, Any]:
    """The checkout's ``config.json``, to be used from any directory, and on another port.

    :param port: where the router listens, on 127.0.0.1
    """
    path = checkout / _CONFIG
    config: dict[str, Any] = json.loads(path.read_text())
    router, container = config["workers"]
    [transport] = router["transports"]
    shipped = transport["endpoint"]["port"]
    transport["endpoint"]["port"] = port
    for service in transport["paths"].values():
        if "directory" in service:
            service["directory"] = str((path.parent / service["directory"]).resolve())
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
    """The environment variables that a node with this configuration reads secrets from."""
    router = config["workers"][0]
    return [name for component in router["components"] for name in component["extra"]["secrets"]]
