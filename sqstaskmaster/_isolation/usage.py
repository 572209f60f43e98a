"""What a task uses: the CPU seconds and memory of its whole process tree."""

from __future__ import annotations

from typing import NamedTuple

from sqstaskmaster._isolation import process_tree
from sqstaskmaster._isolation.news import Before

# The pause between two looks at a task's memory: a quarter of a second at first, then a tenth of its age, up to 10
# seconds. This way a hundred sleeping tasks cost a thousandth of a core.
_LOOK_SECONDS = (0.25, 10.0)
_LOOK_SHARE = 0.1


class Usage(NamedTuple):
    """What a task has used; None if unknown.

    `cpu_seconds`: user and system time of the task and everything it started. `peak_memory`: the most bytes it held
    beyond what it was forked with. It is exact for the task's process; for several at once, and for other programs, it
    comes from samples taken a quarter of a second to ten seconds apart.
    """

    cpu_seconds: float | None = None
    peak_memory: int | None = None


class Meter:
    """What one task uses: samples of its memory while it runs, on Linux, and what its keeper reports at the end.

    :param began: when it began, by `time.monotonic`.
    :param keeper: the keeper's pid.
    """

    def __init__(self, began: float, keeper: int) -> None:
        self.next_look_at = began + _LOOK_SECONDS[0]
        self.inherited: int | None = None  # the bytes that it was forked with; known once it has started
        self.before: Before | None = None  # what was used and held before it, in a process that stays
        self._began = began
        self._keeper = keeper
        self._peak = 0
        self._used: Usage | None = None

    @property
    def is_over(self) -> bool:
        """Whether the task is gone."""
        return self._used is not None

    @property
    def usage(self) -> Usage:
        """While it runs, CPU seconds as of now and memory as of the last sample."""
        if self._used is not None:
            return self._used
        before = 0.0 if self.before is None else self.before.cpu_seconds
        return Usage(max(0.0, process_tree.cpu_seconds_below(self._keeper) - before), self._peak)

    @property
    def held(self) -> int | None:
        """Bytes that it and everything below it hold now, beyond what it was forked with; None if unknown."""
        known = self._used is None and self.inherited is not None and process_tree.LINUX
        return self.memory(0) if known else None

    def memory(self, enough: int) -> int:
        """The same, exact only above `enough`; 0 before the task has begun. Linux only."""
        if self.inherited is None:
            return 0
        more = () if self.before is None else self.before[1:4]
        return process_tree.own_memory(self._keeper, self.inherited, enough, *more)

    def look(self, now: float) -> None:
        """Take a sample, and set when to take the next."""
        shortest, longest = _LOOK_SECONDS
        self.next_look_at = now + min(longest, max(shortest, (now - self._began) * _LOOK_SHARE))
        self._peak = max(self._peak, self.held or 0)

    def end(self, cpu_seconds: float | None, resident_peak: int | None) -> None:
        """The task is gone: the figures that its keeper reported, None for any that it did not."""
        peak = None
        if resident_peak is not None and self.inherited is not None:
            peak = max(self._peak, resident_peak - self.inherited, 0)
        self._used = Usage(cpu_seconds, peak)
