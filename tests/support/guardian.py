"""Runs one command and sees to it that nothing of it outlives its owner.

Usage: ``guardian.py OWNER_PID REPORT COMMAND [ARGUMENT...]``, run as a program.

The command gets a session of its own. Its descendants, however they detach themselves, are killed
when the command ends, when the guardian is told to stop (SIGTERM), or when the owner is gone, be
it by SIGKILL. REPORT becomes a JSON file: ``guardian`` and ``pid`` while the command runs, and
afterwards also ``left_behind``, the command lines of what the command itself did not stop.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["descendants"]

_PR_SET_CHILD_SUBREAPER = 36


def descendants(pid: int) -> list[int]:
    """The ids of all living processes below this one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The fields after the command name, which may itself hold spaces and parentheses.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended while we looked
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    unexplored = [pid]
    while unexplored:
        below = children.get(unexplored.pop(), [])
        found += below
        unexplored += below
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""  # it ended while we looked


def _kill_descendants() -> None:
    """Kill and reap until there is nothing left; orphans become our children meanwhile."""
    while True:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself, which is as good
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _reap(pid: int) -> int | None:
    """Reap whatever has ended; the exit status of ``pid`` if it was among it."""
    ended = None
    while True:
        try:
            reaped, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if reaped == 0:
            return ended
        if reaped == pid:
            ended = os.waitstatus_to_exitcode(status)


def main(owner: int, report: Path, command: list[str]) -> int:
    """Run the command to its end, or to ours."""
    owner_fd = os.pidfd_open(owner)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stopping = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)

    # A shell ignores it for what it runs in the background, and so would the command.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    pid = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL).pid
    facts: dict[str, object] = {"guardian": os.getpid(), "pid": pid}
    _write(report, facts)

    status: int | None = None
    while status is None and not stopping:
        ready, _, _ = select.select([owner_fd, wakeup_read], [], [])
        if owner_fd in ready:
            break
        os.read(wakeup_read, 4096)
        status = _reap(pid)
    left_behind = [_command_line(left) for left in descendants(os.getpid())] if status is not None else []
    _kill_descendants()
    _write(report, {**facts, "left_behind": left_behind})
    return 128 + signal.SIGKILL if status is None else 128 - status if status < 0 else status


def _write(report: Path, facts: dict[str, object]) -> None:
    """Write the report so that a reader finds all of it or the one before."""
    try:
        draft = report.with_suffix(".draft")
        draft.write_text(json.dumps(facts))
        draft.replace(report)
    except FileNotFoundError:
        pass  # the owner has removed the directory: nobody is left to read it


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
