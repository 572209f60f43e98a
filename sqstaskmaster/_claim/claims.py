"""What this process knows of its claim on a message: when it was received, and when the claim lapses unless extended.

The one who receives notes it on the message, the one who handles reads it there: so neither knows the other. All times
are seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import Any

from sqstaskmaster._sqs.limits import MAX_VISIBILITY_SECONDS

_NOTE = "_sqstaskmaster_claim"


class Claim:
    """One receive of one message.

    `received` is when the ReceiveMessage request was sent: SQS counts the claim's 12 hours from there. `expires` is
    when the visibility timeout last set runs out, None while nothing is known of it. `ends` is when no extension can
    help any more. `task` is the task's name where it is known, for logs.
    """

    __slots__ = ("received", "expires", "ends", "task")

    def __init__(self, received: float, expires: float | None = None, task: str | None = None) -> None:
        self.received = received
        self.expires = expires
        self.ends = received + MAX_VISIBILITY_SECONDS
        self.task = task

    def left(self, now: float) -> float:
        """Seconds until the claim lapses unless extended; 0 where it has, or where nothing is known."""
        return max(0.0, self.expires - now) if self.expires is not None else 0.0

    def cut(self, seconds: int, now: float) -> int:
        """`seconds`, or the whole seconds that are left of the 12 hours where those are fewer.

        SQS refuses an extension past the 12 hours rather than shortening it.
        """
        return max(0, min(seconds, int(self.ends - now)))

    def is_final(self) -> bool:
        """Whether the claim already reaches to its end, less the second that whole seconds cost."""
        return self.expires is not None and self.expires >= self.ends - 1

    def extended(self, asked_at: float, seconds: int) -> None:
        """Take note that SQS granted `seconds`, counted from no earlier than `asked_at`."""
        self.expires = asked_at + seconds

    def refused_as_too_long(self, now: float) -> None:
        """Take note that the 12 hours are nearer than was known: what is held now is all there will be."""
        self.ends = min(self.ends, now + self.left(now))


def note(message: Any, claim: Claim) -> None:
    """Leave the claim on the message. An object that takes no attributes is left as it is: its claim is unknown."""
    try:
        setattr(message, _NOTE, claim)
    except (AttributeError, TypeError):
        pass


def of(message: Any) -> Claim | None:
    """The claim noted on the message, if any."""
    claim = getattr(message, _NOTE, None)
    # A mock answers every name with something.
    return claim if isinstance(claim, Claim) else None
