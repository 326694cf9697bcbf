"""Installs the package as users have it: a wheel in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support.process import ROOT

__all__ = ["build_wheel", "install"]

_PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--isolated"]

#: Programs of other packages that users start beside ``twistedcelery``.
_PROGRAMS = ("celery", "crossbar")


def build_wheel(source: Path, directory: Path) -> Path:
    """Build the wheel of a source tree, without network."""
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory)]
    _run([*_PIP, "wheel", *options, str(source)])
    (wheel,) = directory.glob("*.whl")
    return wheel


def install(directory: Path, name: str = "venv") -> Path:
    """Install the wheel in a new virtual environment, without network.

    Its dependencies are those of the running environment, which are found after the environment's own
    packages. The running environment's ``.pth`` files are not read, so its ``twistedcelery`` is not seen.

    :param name: the environment's folder in ``directory``
    :return: the folder with its programs
    """
    environment = directory / name
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    python = environment / "bin" / "python"
    wheel = build_wheel(ROOT, directory)
    _run([*_PIP, "--python", str(python), "install", "--no-index", "--no-deps", str(wheel)])
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for program in _PROGRAMS:
        script = Path(sys.executable).with_name(program).read_text()
        copy = python.with_name(program)
        copy.write_text(f"#!{python}\n" + script.partition("\n")[2])
        copy.chmod(0o755)
    return python.parent


def _run(command: list[str]) -> None:
    finished = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
