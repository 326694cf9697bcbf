"""Sends and takes whole messages of kombu's ``filesystem://``.

kombu creates a message's file in the folder where readers look, and fills it afterwards. A quick reader
finds an empty file, and ends with a JSONDecodeError. So kombu writes to another folder, and complete
files are renamed into the one where workers look. Reading leaves a file alone while its writer is busy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport.filesystem import Channel

__all__ = ["SpoolFolder", "WholeMessageChannel"]


class SpoolFolder:
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


class WholeMessageChannel(Channel):
    """Takes a message once it is complete: the writer holds a lock while it fills the file."""

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        # In kombu's order, and by kombu's rule for names.
        ending = f"{queue}.msg"
        waiting = sorted(
            path for path in Path(self.data_folder_in).iterdir() if path.name.partition(".")[2] == ending
        )
        if not waiting or not _is_complete(waiting[0]):
            raise Empty
        return super()._get(queue)  # type: ignore[no-untyped-call]  # as all of kombu


def _is_complete(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return os.fstat(file.fileno()).st_size > 0
    except OSError:
        # Locked, or taken by another reader.
        return False
