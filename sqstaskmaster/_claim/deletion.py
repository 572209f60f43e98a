"""Deleting the message of finished work, as a state machine: no input, no output, no clock of its own.

    due --- begin ---> a try is under way --- answered ---> DONE | GIVE_UP | RETRY: due again after a pause

Finished work must not be repeated, so tries go on for as long as the claim is held.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable

from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._sqs.answers import is_answer, is_claim_lost

# The longest wait for one try before another is made; and the shortest, at the end of the claim.
LONGEST_WAIT_SECONDS = 5.0
_SHORTEST_WAIT_SECONDS = 1.0

# The pause between two tries doubles each time, from the first up to the longest.
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0


class Deleted(enum.Enum):
    """What became of a try."""

    DONE = "the message is gone"
    RETRY = "another try is due"
    GIVE_UP = "the message stays, and will be redelivered"


class Deletion:
    """The tries to delete one message.

    `due`, in seconds of the claim's clock: when the next try is due, or the wait for the current one ends; inf once
    there is nothing left to do.

    :param uniform: for tests: `random.uniform`, which spreads the pauses.
    """

    __slots__ = ("due", "_give_up_at", "_pause", "_may_be_deleted", "_uniform")

    def __init__(self, claim: Claim, now: float, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self.due = now
        self._give_up_at = now + max(claim.left(now), LONGEST_WAIT_SECONDS)
        self._pause = _FIRST_PAUSE_SECONDS
        self._may_be_deleted = False
        self._uniform = uniform

    def begin(self, now: float) -> float:
        """A try begins. Returns how many seconds to wait for its answer; after that its answer is NoAnswer."""
        wait = min(LONGEST_WAIT_SECONDS, max(self._give_up_at - now, _SHORTEST_WAIT_SECONDS))
        self.due = now + wait
        return wait

    def answered(self, error: Exception | None, now: float) -> Deleted:
        """What the end of a try means. `error`: what it raised, None if the message was deleted."""
        self.due = math.inf
        if error is None:
            return Deleted.DONE
        if is_claim_lost(error):
            # An earlier try whose answer was lost may have deleted it.
            return Deleted.DONE if self._may_be_deleted else Deleted.GIVE_UP
        self._may_be_deleted = self._may_be_deleted or not is_answer(error)
        if now + self._pause >= self._give_up_at:
            return Deleted.GIVE_UP
        self.due = now + self._pause * self._uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
        return Deleted.RETRY
