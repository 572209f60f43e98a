"""The clock of claims: it counts the time that this machine was suspended, since SQS counts it too."""

from __future__ import annotations

import time


def now() -> float:
    """Seconds, of CLOCK_BOOTTIME where there is one (Linux), of the monotonic clock elsewhere."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()
