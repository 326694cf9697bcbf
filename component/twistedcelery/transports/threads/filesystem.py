"""Whole messages for kombu's ``filesystem://``.

kombu creates a message's file in the folder where workers look, and fills it afterwards. A worker
that is quick enough finds an empty file, and ends with a JSONDecodeError. So kombu is given another
folder to write to, and what is complete is renamed into the one where workers look.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Outbox"]


class Outbox:
    """The folder that kombu writes to.

    :param options: the transport options of the application's broker
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        # The default is kombu's.
        self._destination = Path(options.get("data_folder_out", "data_out"))
        self._folder: Path | None = None

    def open(self) -> dict[str, Any]:
        """Make the folder. It is in the destination, since renaming must not leave the filesystem.

        :return: the transport options that make kombu write to it
        """
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="outbox-", dir=self._destination))
        return {"data_folder_out": str(self._folder)}

    def send(self) -> None:
        """Let workers see what was written."""
        if self._folder is not None:
            for file in sorted(self._folder.iterdir()):
                file.rename(self._destination / file.name)

    def close(self) -> None:
        """Remove the folder, with what was not sent."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
