"""What a keeper reports to its worker about a task, a line each.

started PID BEFORE...                   BEFORE: what the process had used and held, if it stays: see `Before`
spent WHY                               its process takes no other task
stays                                   its process stays, for the next task
ended STATUS CPU_SECONDS PEAK_BYTES     nothing of it is left
failed WHY                              it was never started

In a process that stays, the end is reported in one write, together with the start if the task was short, because each
write wakes the worker.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple


class Before(NamedTuple):
    """What a process that stays, and the helpers that its initializer started, used and held before a task began.

    `cpu_seconds`: of all; `helpers`: bytes resident in the helpers; `share`: the proportional size of all; `image`:
    identifies what is forked from the process, see `process_tree.image_of`; `resident`: bytes resident in the process
    itself.
    """

    cpu_seconds: float = 0.0
    helpers: int = 0
    share: int = 0
    image: int = 0
    resident: int = 0


def started(task: int, before: Before | None = None) -> str:
    return f"started {task}" + ("" if before is None else " %.6f %d %d %d %d" % before)


def stays(spent: str) -> str:
    """Whether the task's process takes another task; `spent`: why it does not, "" if it does."""
    return f"spent {' '.join(spent.split())[:500]}" if spent else "stays"


def ended(status: int, seconds: float, peak: int) -> str:
    return f"ended {status} {seconds:.6f} {peak}"


def failed(error: BaseException) -> str:
    return f"failed {type(error).__name__}: {error}"


def say(news: int, *lines: str) -> None:
    with contextlib.suppress(OSError):  # nobody is listening any more
        os.write(news, "".join(f"{line}\n" for line in lines).encode(errors="replace"))


class News:
    """The worker's side. If an interrupt loses a line, the others stay whole."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.before: Before | None = None
        self.stays = False
        self.spent = ""
        self.status: int | None = None
        self.cpu_seconds: float | None = None
        self.resident_peak: int | None = None
        self.failure = ""
        self._bytes = bytearray()

    @property
    def over(self) -> bool:
        """Whether the keeper has reported that nothing of the task is left."""
        return self.status is not None or bool(self.failure)

    def feed(self, content: bytes) -> None:
        self._bytes += content
        *lines, self._bytes = self._bytes.split(b"\n")
        for line in lines:
            kind, _, words = line.decode(errors="replace").partition(" ")
            if kind == "started":
                pid, *before = words.split()
                self.pid = int(pid)
                if before:
                    self.before = Before(float(before[0]), *map(int, before[1:]))
            elif kind == "stays":
                self.stays = True
            elif kind == "spent":
                self.spent = words
            elif kind == "failed":
                self.failure = words
            else:
                status, seconds, peak = words.split()
                self.status, self.cpu_seconds, self.resident_peak = int(status), float(seconds), int(peak)
