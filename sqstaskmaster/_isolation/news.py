"""What a keeper tells its worker about a task, a line each.

started PID
ended STATUS CPU_SECONDS PEAK_BYTES     nothing of it is left
failed WHY                              nothing of it ever was
"""

from __future__ import annotations

import contextlib
import os


def say_started(news: int, task: int) -> None:
    _write(news, f"started {task}")


def say_ended(news: int, status: int, seconds: float, peak: int) -> None:
    _write(news, f"ended {status} {seconds:.6f} {peak}")


def say_failed(news: int, error: BaseException) -> None:
    _write(news, f"failed {type(error).__name__}: {error}")


def _write(news: int, line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(news, f"{line}\n".encode(errors="replace"))


class News:
    """The worker's side. A line that an interrupt has lost leaves the others whole."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.status: int | None = None
        self.cpu_seconds: float | None = None
        self.resident_peak: int | None = None
        self.failure = ""
        self._bytes = bytearray()

    @property
    def over(self) -> bool:
        """Whether the keeper has said that nothing of the task is left."""
        return self.status is not None or bool(self.failure)

    def feed(self, content: bytes) -> None:
        self._bytes += content
        *lines, self._bytes = self._bytes.split(b"\n")
        for line in lines:
            kind, _, words = line.decode(errors="replace").partition(" ")
            if kind == "started":
                self.pid = int(words)
            elif kind == "failed":
                self.failure = words
            else:
                status, seconds, peak = words.split()
                self.status, self.cpu_seconds, self.resident_peak = int(status), float(seconds), int(peak)
