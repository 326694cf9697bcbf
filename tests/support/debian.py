"""The programs that Debian packages: found, or installed, or a reason to skip.

``python -m tests.support.debian`` (``make test`` runs it) installs all of them beforehand.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

__all__ = ["PACKAGES", "require", "unavailable"]

#: Program -> the Debian package that has it.
PACKAGES = {
    "chromium": "chromium",
    "curl": "curl",
    "openssl": "openssl",
    "rabbitmq-server": "rabbitmq-server",
    "redis-server": "redis-server",
}

# Where programs lie that are not, or only as wrappers for the system's own service, on the PATH.
_DIRECTORIES = ("/usr/lib/rabbitmq/bin", "/usr/local/sbin", "/usr/sbin")

# Installed packages must not start services: their ports are the standard ones.
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = "#!/bin/sh\nexit 101\n"


def require(program: str) -> Path:
    """The path of a program. Installs its package where it is missing and we are root.

    Skips the running test where it can be neither found nor installed; fails it with ``CI=true``.
    """
    path = _find(program)
    if path is None and os.geteuid() == 0:
        _install([PACKAGES[program]])
        path = _find(program)
    if path is None:
        unavailable(f"{program} is missing, and Debian's {PACKAGES[program]} could not be installed")
    return path


def unavailable(reason: str) -> pytest.NoReturn:
    """Skip the running test; fail it with ``CI=true``, where every part must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _find(program: str) -> Path | None:
    found = shutil.which(program, path=os.pathsep.join((*_DIRECTORIES, os.environ.get("PATH", ""))))
    return None if found is None else Path(found)


def _install(packages: list[str]) -> bool:
    """Install Debian packages without starting a service. One process at a time."""
    if shutil.which("apt-get") is None:
        return False
    with (Path(tempfile.gettempdir()) / f"twistedcelery-apt-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ours = not _POLICY.exists()
        if ours:
            _POLICY.write_text(_POLICY_TEXT)
            _POLICY.chmod(0o755)
        try:
            return _apt_get("update") and _apt_get("install", "--no-install-recommends", *packages)
        finally:
            if ours:
                _POLICY.unlink()


def _apt_get(*arguments: str) -> bool:
    command = ["apt-get", "-qq", "--yes", "-o", "DPkg::Lock::Timeout=120", *arguments]
    finished = subprocess.run(
        command,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        print(f"{' '.join(command)} failed:\n{finished.stdout}", file=sys.stderr)
    return finished.returncode == 0


def main() -> int:
    """Install what is missing, where we may. What stays missing is the tests' affair."""
    missing = sorted({package for program, package in PACKAGES.items() if _find(program) is None})
    if missing and os.geteuid() == 0:
        print(f"installing {', '.join(missing)}", flush=True)
        _install(missing)
    elif missing:
        print(f"not root: tests that need {', '.join(missing)} will be skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
