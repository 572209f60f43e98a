"""What a task uses: CPU seconds and memory, of its whole process tree."""

from __future__ import annotations

from typing import NamedTuple

from sqstaskmaster._isolation import process_tree

# Between two looks at the memory of a task: a quarter of a second at first, then a tenth of its age, up to 10 seconds.
# A hundred sleeping tasks cost a thousandth of a core so.
_LOOK_SECONDS = (0.25, 10.0)
_LOOK_SHARE = 0.1


class Usage(NamedTuple):
    """What a task has used; None where that is not known.

    `cpu_seconds`: user and system time of the task and of all it started. `peak_memory`: the most bytes it held beyond
    what it was forked with. That of the task's process is exact; that of several at once, and of other programs, is
    from samples, a quarter of a second to ten seconds apart.
    """

    cpu_seconds: float | None = None
    peak_memory: int | None = None


class Meter:
    """The samples of one task's memory. On Linux; elsewhere there are none."""

    def __init__(self, began: float) -> None:
        self.next_look_at = began + _LOOK_SECONDS[0]
        self.peak = 0
        self._began = began

    def look(self, now: float, keeper: int, inherited: int | None) -> None:
        """Take a sample, and set when to take the next."""
        shortest, longest = _LOOK_SECONDS
        self.next_look_at = now + min(longest, max(shortest, (now - self._began) * _LOOK_SHARE))
        if process_tree.LINUX and inherited is not None:
            self.peak = max(self.peak, process_tree.own_memory(keeper, inherited))

    def usage(self, cpu_seconds: float | None, resident_peak: int | None, inherited: int | None) -> Usage:
        if resident_peak is None or inherited is None:
            return Usage(cpu_seconds, None)
        return Usage(cpu_seconds, max(self.peak, resident_peak - inherited, 0))
