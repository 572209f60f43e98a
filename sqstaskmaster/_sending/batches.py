"""Tasks that wait to be sent, and how they are combined into requests. No network, no threads.

add(entry) -> waiting -> take() -> one request's entries -> done(entries)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from sqstaskmaster._sqs.limits import MAX_BATCH_BYTES, MAX_BATCH_ENTRIES


class Entry:
    """One task, ready to be sent: `request` is what SendMessage takes, `size` its bytes as SQS counts them."""

    __slots__ = ("index", "task", "kwargs", "request", "size")

    def __init__(self, index: int, task: str, kwargs: Mapping[str, Any], request: dict[str, Any], size: int) -> None:
        self.index = index
        self.task = task
        self.kwargs = kwargs
        self.request = request
        self.size = size

    @property
    def group(self) -> str:
        return str(self.request["MessageGroupId"])


class Line:
    """Entries for a standard queue: any ten in a row make a request.

    :param most: how many entries make a request, if not ten.
    """

    def __init__(self, most: int = MAX_BATCH_ENTRIES) -> None:
        self._most = most
        self._entries: deque[Entry] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def has_whole(self) -> bool:
        """Whether a request can be made that has no room for another entry."""
        return len(self._entries) >= self._most or self.bytes > MAX_BATCH_BYTES

    def add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.bytes += entry.size

    def take(self) -> list[Entry]:
        """Take the entries of the next request: as many as fit, none if none wait."""
        taken: list[Entry] = []
        room = MAX_BATCH_BYTES
        while self._entries and len(taken) < self._most and self._entries[0].size <= room:
            entry = self._entries.popleft()
            room -= entry.size
            taken.append(entry)
        self.bytes -= MAX_BATCH_BYTES - room
        return taken

    def done(self, entries: Iterable[Entry]) -> None:
        """Does nothing: these entries do not depend on each other."""

    def clear(self) -> list[Entry]:
        """Take everything that waits."""
        waiting = list(self._entries)
        self._entries.clear()
        self.bytes = 0
        return waiting


class GroupedLine:
    """Entries for a FIFO queue: a message group has one entry on its way at a time; the next waits until it is done.

    A request never holds two entries of one group: SQS could refuse the first for a moment and accept the second, and
    then no retry could restore their order.

    :param most: how many entries make a request, if not ten.
    """

    def __init__(self, most: int = MAX_BATCH_ENTRIES) -> None:
        self._most = most
        self._groups: dict[str, deque[Entry]] = {}
        self._free: dict[str, None] = {}  # groups with an entry that may leave; a dictionary, for its order
        self._busy: set[str] = set()
        self._length = 0
        self.bytes = 0

    def __len__(self) -> int:
        return self._length

    def has_whole(self) -> bool:
        """Whether a full request can be made."""
        return len(self._free) >= self._most

    def add(self, entry: Entry) -> None:
        group = entry.group
        self._groups.setdefault(group, deque()).append(entry)
        self._length += 1
        self.bytes += entry.size
        if group not in self._busy:
            self._free[group] = None

    def take(self) -> list[Entry]:
        """Take the first entries of up to ten groups that have none on its way."""
        taken: list[Entry] = []
        room = MAX_BATCH_BYTES
        for group in self._free:
            entry = self._groups[group][0]
            if len(taken) == self._most or entry.size > room:
                break
            room -= entry.size
            taken.append(entry)
        for entry in taken:
            self._groups[entry.group].popleft()
            del self._free[entry.group]
            self._busy.add(entry.group)
        self._length -= len(taken)
        self.bytes -= MAX_BATCH_BYTES - room
        return taken

    def done(self, entries: Iterable[Entry]) -> None:
        """These have been answered: their groups may go on."""
        for entry in entries:
            self._busy.discard(entry.group)
            if self._groups.get(entry.group):
                self._free[entry.group] = None
            else:
                self._groups.pop(entry.group, None)

    def drop(self, group: str) -> list[Entry]:
        """Take everything that waits in one group."""
        waiting = self._groups.pop(group, deque())
        self._free.pop(group, None)
        self._length -= len(waiting)
        self.bytes -= sum(entry.size for entry in waiting)
        return list(waiting)

    def clear(self) -> list[Entry]:
        """Take everything that waits."""
        return [entry for group in list(self._groups) for entry in self.drop(group)]
