"""What happened in the demo, as plain values: the worker process writes them, the drawing process reads them."""

from __future__ import annotations

import dataclasses
import enum
import json

# The most that Linux writes to a pipe in one piece (PIPE_BUF), so that events from several threads never mix.
_LONGEST_LINE = 4096


class Kind(str, enum.Enum):
    """What can happen to a message. The outcomes are spelt as `sqstaskmaster.Outcome` spells them."""

    SENT = "sent"
    RECEIVED = "received"
    EXTENDED = "extended"
    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    STUCK = "stuck"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"
    BACK = "back"
    ASIDE = "aside"
    TROUBLE = "trouble"


ENDS = frozenset({Kind.DONE, Kind.FAILED, Kind.TIMED_OUT, Kind.STUCK, Kind.INTERRUPTED, Kind.REFUSED})
KEPT = ENDS - {Kind.DONE, Kind.INTERRUPTED}


@dataclasses.dataclass(frozen=True)
class Event:
    """`at` is in seconds since the demo began; `row` is the number of the scenario, -1 if it concerns none.

    `claim` is in seconds, how long SQS hides the message from now on; `stack` is where the task was stopped.
    """

    at: float
    kind: Kind
    row: int = -1
    text: str = ""
    claim: float = 0.0
    stack: str = ""

    def to_line(self) -> bytes:
        event = self
        while len(line := json.dumps(dataclasses.asdict(event)).encode()) >= _LONGEST_LINE:
            event = dataclasses.replace(event, text=event.text[: len(event.text) // 2], stack=event.stack[:-200])
        return line + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Event:
        fields = json.loads(line)
        return cls(**{**fields, "kind": Kind(fields["kind"])})
