"""Which message of a queue is next: the oldest that is ready or, on a FIFO queue, the first of an unlocked group.

Each line keeps heaps whose entries may be out of date: that is checked when an entry comes to the top. So each step
costs at most the logarithm of the length.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Callable
from typing import Any, Protocol


class Place(enum.IntEnum):
    """Where a message of a queue is."""

    READY = 0
    DELAYED = 1
    IN_FLIGHT = 2
    GONE = 3


READY, DELAYED, IN_FLIGHT, GONE = Place


class Stored:
    """One message in a queue.

    `number`: its place in the queue's order. `visible_at`: when it may be received again; `claimed_at`: when it was
    last received, both in seconds of the clock. `sent_at`, `first_received`: seconds since 1970. `expires`: the end of
    its retention. `system`: its system attributes, from when it was sent. `queued`, `blocking`: whether a heap has an
    entry for it.
    """

    __slots__ = (
        "body",
        "md5",
        "message_attributes",
        "message_id",
        "system",
        "group",
        "number",
        "place",
        "visible_at",
        "claimed_at",
        "sent_at",
        "first_received",
        "expires",
        "receives",
        "queued",
        "blocking",
    )

    def __init__(
        self,
        body: str,
        md5: str,
        message_attributes: dict[str, dict[str, Any]],
        message_id: str,
        system: dict[str, str],
        sent_at: float,
    ) -> None:
        self.body: str = body
        self.md5: str = md5
        self.message_attributes: dict[str, dict[str, Any]] = message_attributes
        self.message_id: str = message_id
        self.system: dict[str, str] = system
        self.group: str | None = system.get("MessageGroupId")
        self.number: int = 0
        self.place: Place = GONE
        self.visible_at: float = -math.inf
        self.claimed_at: float = -math.inf
        self.sent_at: float = sent_at
        self.first_received: float | None = None
        self.expires: float = math.inf
        self.receives: int = 0
        self.queued: bool = False
        self.blocking: bool = False

    def copy(self) -> Stored:
        """The same message, in no queue yet."""
        made = Stored(self.body, self.md5, self.message_attributes, self.message_id, dict(self.system), self.sent_at)
        made.receives, made.first_received, made.expires = self.receives, self.first_received, self.expires
        return made


#: Takes a message, or returns False: then it goes elsewhere.
Accept = Callable[[Stored], bool]


class Line(Protocol):
    def add(self, message: Stored) -> None:
        """The message is in the queue from now on; `show` or `hide` follows."""

    def show(self, message: Stored) -> None:
        """The message is READY from now on."""

    def hide(self, message: Stored) -> None:
        """The message is no longer READY, but still in the queue."""

    def remove(self, message: Stored) -> None:
        """The message is GONE."""

    def take(self, most: int, accept: Accept) -> None:
        """Offer what is next, until `most` are accepted. `accept` hides or removes each, or later shows it again."""


class StandardLine:
    def __init__(self) -> None:
        self._ready: list[tuple[int, Stored]] = []

    def add(self, message: Stored) -> None:
        pass

    def show(self, message: Stored) -> None:
        if not message.queued:
            message.queued = True
            heapq.heappush(self._ready, (message.number, message))

    def hide(self, message: Stored) -> None:
        pass

    def remove(self, message: Stored) -> None:
        pass

    def take(self, most: int, accept: Accept) -> None:
        ready = self._ready
        while most and ready:
            _, message = heapq.heappop(ready)
            message.queued = False
            if message.place is READY and accept(message):
                most -= 1

    def take_newest(self, most: int, accept: Accept) -> None:
        """Out of order."""
        for _, message in sorted((entry for entry in self._ready if entry[1].place is READY), reverse=True)[:most]:
            accept(message)


class _Group:
    """The messages of one group. `offered`: the number of the message that stands for it in the line, if any."""

    __slots__ = ("ready", "hidden", "size", "offered")

    def __init__(self) -> None:
        self.ready: list[tuple[int, Stored]] = []
        self.hidden: list[tuple[int, Stored]] = []
        self.size = 0
        self.offered: int | None = None

    def first_ready(self) -> float:
        ready = self.ready
        while ready and ready[0][1].place is not READY:
            heapq.heappop(ready)[1].queued = False
        return ready[0][0] if ready else math.inf

    def first_hidden(self) -> float:
        """The number of the first hidden message: later ones wait for it."""
        hidden = self.hidden
        while hidden and hidden[0][1].place not in (DELAYED, IN_FLIGHT):
            heapq.heappop(hidden)[1].blocking = False
        return hidden[0][0] if hidden else math.inf


class FifoLine:
    """A group is locked from its first hidden message on. A receive takes as many from one group as it can."""

    def __init__(self) -> None:
        self._groups: dict[str | None, _Group] = {}
        self._offers: list[tuple[int, str | None]] = []

    def add(self, message: Stored) -> None:
        self._groups.setdefault(message.group, _Group()).size += 1

    def show(self, message: Stored) -> None:
        group = self._groups[message.group]
        if not message.queued:
            message.queued = True
            heapq.heappush(group.ready, (message.number, message))
        self._offer(message.group, group)

    def hide(self, message: Stored) -> None:
        group = self._groups[message.group]
        if not message.blocking:
            message.blocking = True
            heapq.heappush(group.hidden, (message.number, message))

    def remove(self, message: Stored) -> None:
        group = self._groups[message.group]
        group.size -= 1
        if group.size:
            self._offer(message.group, group)
        else:
            del self._groups[message.group]

    def take(self, most: int, accept: Accept) -> None:
        while most and self._offers:
            number, name = heapq.heappop(self._offers)
            group = self._groups.get(name)
            if group is None or group.offered != number:
                continue
            group.offered = None
            locked_from = group.first_hidden()  # before this receive
            while most and group.first_ready() < locked_from:
                _, message = heapq.heappop(group.ready)
                message.queued = False
                if accept(message):
                    most -= 1
            self._offer(name, group)

    def _offer(self, name: str | None, group: _Group) -> None:
        first = group.first_ready()
        if first < group.first_hidden() and first != group.offered:
            group.offered = int(first)
            heapq.heappush(self._offers, (int(first), name))
