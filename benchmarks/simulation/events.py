"""Time, chance, and what happens next."""

import heapq
import random
import re

_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|https://sqs.simulated/\d+/simulation-\d+(?:q\d)?(?:\.fifo)?(?![\w.-])"
)

# A loop that turns more often than this per second is spinning.
MOST_TURNS_A_SECOND = 1000


class Violation(BaseException):
    """A law was broken. A BaseException, so that the package does not handle it like an error."""


class Chance:
    """Random decisions by `random()` alone, which is the same on every Python."""

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def happens(self, probability):
        return probability > 0 and self.random() < probability

    def between(self, lowest, highest):
        return lowest + (highest - lowest) * self.random()

    def skewed(self, lowest, highest):
        """A number between the two, mostly near the first."""
        return lowest + (highest - lowest) * self.random() ** 3

    def whole(self, lowest, highest):
        """A whole number, both bounds included."""
        return lowest + int((highest - lowest + 1) * self.random())

    def one_of(self, choices):
        return choices[int(len(choices) * self.random())]

    def weighted(self, weights):
        """A key of a dictionary of weights, chosen by weight."""
        left = sum(weights.values()) * self.random()
        for key, weight in weights.items():
            left -= weight
            if left < 0:
                return key
        return key


class Events:
    """The events to come, in order of time, then in the order in which they were planned."""

    def __init__(self, tell=None):
        self.now = 1000.0
        self.count = 0
        self.heap = []  # (time, number, action)
        self._number = 0
        self._tell = tell
        self.names = {}  # ids of messages -> what a trace calls them

    def at(self, when, action):
        self._number += 1
        heapq.heappush(self.heap, (when, self._number, action))

    def after(self, seconds, action):
        self.at(self.now + seconds, action)

    # -- the trace -----------------------------------------------------------------------------------------------

    @property
    def traced(self):
        return self._tell is not None

    def trace(self, who, text, *values):
        if self._tell is not None:
            said = text % values if values else text
            said = _ID.sub(lambda found: self.names.get(found[0], "?"), said)
            self._tell(f"{self.now - 1000:12.6f}  {who:<9} {said}")
