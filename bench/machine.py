"""The machine that was measured on: what its figures depend on, and nothing that names it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["description"]

_PACKAGES = (
    *(
        "twistedcelery",
        "celery",
        "kombu",
        "amqp",
        "pika",
        "hiredis",
        "redis",
        "twisted",
        "autobahn",
        "crossbar",
    ),
    *("flower", "txcelery-py3", "aio-celery"),
)
#: The Debian packages of the servers.
_SERVERS = ("rabbitmq-server", "erlang-base", "redis-server")


def description() -> list[tuple[str, str]]:
    """What there is, and how much or which version of it."""
    return [
        ("cores", f"{len(os.sched_getaffinity(0))}, {_first('/proc/cpuinfo', 'model name')}"),
        ("memory", f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.1f} GiB"),
        ("kernel", f"Linux {'.'.join(platform.release().split('.')[:2])}"),
        ("system", platform.freedesktop_os_release()["PRETTY_NAME"]),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        *((package, _debian(package)) for package in _SERVERS),
        *((package, _installed(package)) for package in _PACKAGES),
    ]


def _first(path: str, name: str) -> str:
    """The first value of a name in a file of the kernel's."""
    lines = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for found, _, value in lines if found.strip() == name), "0 unknown")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _debian(package: str) -> str:
    try:
        command = ["dpkg-query", "--show", "--showformat=${Version}", package]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
