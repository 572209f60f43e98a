"""The results of tasks: of those given to `submit_many`, and of one that a worker has run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

_ID_BYTES = 16
# The store grows by this many tasks at a time.
_CHUNK = 4096


class MessageIds(Sequence[str | None]):
    """The message ids by the index of their task, None for a task that was not sent.

    SQS's ids are UUIDs, and are kept as their 16 bytes: ten million take 160 MB; as strings they would take six times
    that. Ids of another form (from a `LocalQueue`, for example) are kept as they are.
    """

    def __init__(self) -> None:
        self._known = bytearray()
        self._others: dict[int, str] = {}
        self._length = 0

    def put(self, index: int, message_id: str | None) -> None:
        """Note the `message_id` of the `index`-th task, None if it was not sent. For `submit_many` itself."""
        if message_id is None:
            return self.grow(index + 1)
        start = index * _ID_BYTES
        if start >= len(self._known):
            self._known.extend(bytes(start - len(self._known) + _CHUNK * _ID_BYTES))
        digits = message_id.replace("-", "")
        try:
            packed = bytes.fromhex(digits)
        except ValueError:
            packed = b""
        is_uuid = len(message_id) == 36 and message_id[8:24:5] == "----" and len(packed) == _ID_BYTES
        if is_uuid and packed.hex() == digits and any(packed):
            self._known[start : start + _ID_BYTES] = packed
        else:
            self._others[index] = message_id
        self.grow(index + 1)

    def grow(self, length: int) -> None:
        """Count at least `length` tasks, including those without an id. For `submit_many` itself."""
        self._length = max(self._length, length)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str | None: ...

    @overload
    def __getitem__(self, index: slice) -> list[str | None]: ...

    def __getitem__(self, index: int | slice) -> str | None | list[str | None]:
        if isinstance(index, slice):
            return [self._at(each) for each in range(*index.indices(self._length))]
        # A range handles negative indexes, and those out of range.
        return self._at(range(self._length)[index])

    def _at(self, index: int) -> str | None:
        if index in self._others:
            return self._others[index]
        packed = bytes(self._known[index * _ID_BYTES : (index + 1) * _ID_BYTES])
        return _unpacked(packed) if any(packed) else None


class SubmitResult:
    """What `submit_many` did; while it runs, what it has done so far.

    `taken`: how many tasks were taken from the iterable. `sent`: how many of them SQS has confirmed. `failed`: how
    many were not sent. `message_ids`: see MessageIds.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.sent = 0
        self.failed = 0
        self.message_ids: MessageIds = MessageIds()

    def __repr__(self) -> str:
        return f"SubmitResult(taken={self.taken}, sent={self.sent}, failed={self.failed})"


class Finished(NamedTuple):
    """What a worker reports about a task that has ended, to `Worker(on_finish=...)`.

    `task`, `message_id`, `receive_count` (this receive included), `queue` (its URL), `outcome` (a value of Outcome),
    `continuation` (how often the task has continued, see Continue). In seconds: `queued` (from the send to the start),
    `elapsed` (from the receive), `cpu_seconds` (of the task and everything it started). `peak_memory`: the most bytes
    they held together, less what the task was forked with. None if something is not known.
    """

    task: str
    message_id: str | None
    receive_count: int | None
    queue: str
    outcome: str
    queued: float | None
    elapsed: float
    cpu_seconds: float | None
    peak_memory: int | None
    continuation: int


def _unpacked(packed: bytes) -> str:
    digits = packed.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
