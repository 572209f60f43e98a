"""What happened in the demo, as plain values: the worker process tells them, the drawing process reads them."""

from __future__ import annotations

import dataclasses
import enum
import json

# A pipe takes this much in one piece (PIPE_BUF is at least 512, and 4096 on Linux), so that events from several
# threads never mix. Room is left for the other fields and for JSON's escapes.
_LONGEST_TEXT = 400


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
    """`at` is in seconds since the demo began; `row` is the number of the scenario, -1 where it concerns none.

    `claim` is in seconds, how long SQS hides the message from now on; `stack` is where the task was stopped.
    """

    at: float
    kind: Kind
    row: int = -1
    text: str = ""
    claim: float = 0.0
    stack: str = ""

    def to_line(self) -> bytes:
        fields = dataclasses.asdict(self)
        fields["text"] = self.text[:_LONGEST_TEXT]
        fields["stack"] = self.stack[: 3 * _LONGEST_TEXT]
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Event:
        fields = json.loads(line)
        return cls(**{**fields, "kind": Kind(fields["kind"])})
