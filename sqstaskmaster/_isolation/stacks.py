"""Faulthandler's output made readable: innermost call last, with source lines, like Python's own tracebacks.

Fatal Python error: Segmentation fault           Segmentation fault
                                                 Thread of the signal, most recent call last:
Current thread 0x7f.. (most recent call first):    File "task.py", line 12, in run
  File "task.py", line 7 in fit             ->       self.fit()
  File "task.py", line 12 in run                   File "task.py", line 7, in fit
                                                     booster.update(data)
"""

from __future__ import annotations

import linecache
import os
import re

_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
_THREAD = re.compile(r"(?P<current>Current t|T)hread 0x[0-9a-f]+(?P<name>.*) \(most recent call first\):")
_FATAL = "Fatal Python error: "


class Dump:
    """What was written to the stack descriptor: by faulthandler, or by a task that writes where it should not."""

    def __init__(self, most_bytes: int = 1 << 18) -> None:
        self._most = most_bytes
        self._bytes = bytearray()

    def feed(self, content: bytes) -> None:
        self._bytes += content[: self._most - len(self._bytes)]

    def begin_anew(self) -> None:
        """Discard what has come so far."""
        self._bytes.clear()

    @property
    def is_fatal(self) -> bool:
        """Whether a crash wrote it."""
        return _FATAL.encode() in self._bytes

    def text(self, starter: tuple[str, str]) -> str:
        return readable(self._bytes.decode(errors="replace"), starter)


def readable(dump: str, starter: tuple[str, str]) -> str:
    """The dump as text for people; "" for an empty one.

    `starter` is the file and the function that called the task. A task does not hang in its frame, in those outside it,
    or in adjacent frames of its package, so these are left out.
    """
    shown: list[str] = []
    frames: list[re.Match[str]] = []
    for line in dump.splitlines():
        frame = _FRAME.match(line)
        if frame:
            frames.append(frame)
            continue
        shown += _traceback(frames, starter)
        frames = []
        thread = _THREAD.match(line)
        if thread:
            which = "Current thread" if thread["current"] == "Current t" else "Another thread"
            shown.append(f"{which}{thread['name']}, most recent call last:")
        elif line.strip():
            shown.append(line.removeprefix(_FATAL))
    return "\n".join(shown + _traceback(frames, starter))


def _traceback(frames: list[re.Match[str]], starter: tuple[str, str]) -> list[str]:
    """From frames, innermost first, to lines, innermost last."""
    package = os.path.dirname(starter[0])
    of_starter = (i for i, frame in enumerate(frames) if (frame["file"], frame["function"]) == starter)
    calls = frames[: next(of_starter, 0)]
    while calls and os.path.dirname(calls[-1]["file"]) == package:
        calls.pop()
    # No frame of the task's own: a thread that it did not start, or the starter waiting for threads.
    calls = calls or frames
    return [line for frame in reversed(calls) for line in _lines(frame)]


def _lines(frame: re.Match[str]) -> list[str]:
    source = linecache.getline(frame["file"], int(frame["line"])).strip()
    where = f'  File "{frame["file"]}", line {frame["line"]}, in {frame["function"]}'
    return [where, f"    {source}"] if source else [where]
