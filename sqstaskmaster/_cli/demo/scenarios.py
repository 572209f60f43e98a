"""The tasks of the demo, written as a user would write them. Each is one row of the picture.

To add a scenario, add a handler class and an entry in SCENARIOS.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sqstaskmaster._cli.demo.events import Kind
from sqstaskmaster.message_handler import MessageHandler
from sqstaskmaster.process_handler import ProcessMessageHandler

CLAIM_SECONDS = 2
EXTEND_EVERY_SECONDS = 0.8
LIMIT_SECONDS = 30.0


class Task(MessageHandler):
    """What the demo's handlers share: the timeouts, and a record of what `notify` was given."""

    hard_timeout_seconds = LIMIT_SECONDS

    def __init__(self, message: Any, demo: str) -> None:
        super().__init__(
            message,
            sqs_timeout=CLAIM_SECONDS,
            alarm_timeout=EXTEND_EVERY_SECONDS,
            hard_timeout=self.hard_timeout_seconds,
        )
        self.error: BaseException | None = None
        self.stack = ""

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> None:
        self.error = exception
        self.stack = str((context or {}).get("stack", ""))


def primes() -> Iterator[int]:
    """Honest work for one processor."""
    found: list[int] = []
    number = 2
    while True:
        if all(number % prime for prime in found):
            found.append(number)
            yield number
        number += 1


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    next(prime for prime in primes() if time.monotonic() > end)


class Resize(Task):
    def run(self) -> None:
        work(0.7)


class Render(Task):
    """Far longer than its claim."""

    def run(self) -> None:
        work(5.6)


class Import(Task):
    def run(self) -> None:
        work(1.0)
        raise ValueError("line 7 has no price")


class Optimise(Task):
    """Never ends by itself."""

    hard_timeout_seconds = 2.5

    def run(self) -> None:
        for _ in primes():
            pass


class Crawl(Task):
    """`running` is true while it still fetches pages, which it soon stops doing."""

    def __init__(self, message: Any, demo: str) -> None:
        super().__init__(message, demo)
        self.pages = 0
        self.pages_seen = 0

    def run(self) -> None:
        for self.pages in range(1, 6):
            work(0.1)
        work(LIMIT_SECONDS)

    def running(self) -> bool:
        progress = self.pages > self.pages_seen
        self.pages_seen = self.pages
        return progress


class Add(Task, ProcessMessageHandler):
    """One call into C that holds the interpreter for hours: no signal handler of Python's runs meanwhile."""

    hard_timeout_seconds = 2.0

    def __init__(self, message: Any, demo: str) -> None:
        super().__init__(message, demo)
        self.term_grace = 0.5

    def run(self) -> None:
        self.total = sum(range(10**12))


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One message of the demo. Without a handler, its body is malformed.

    `seconds` is about how long it keeps the worker busy, `ends` how it ends if all is well.
    """

    title: str
    seconds: float
    ends: Kind
    handler: type[Task] | None = None

    @property
    def task(self) -> str:
        return self.handler.__name__ if self.handler else ""

    @property
    def limit(self) -> float:
        """Its hard timeout, in seconds."""
        return self.handler.hard_timeout_seconds if self.handler else 0.0


SCENARIOS = (
    Scenario("quick task", 0.7, Kind.DONE, Resize),
    Scenario("long task", 5.6, Kind.DONE, Render),
    Scenario("malformed body", 0.0, Kind.REFUSED),
    Scenario("failing task", 1.0, Kind.FAILED, Import),
    Scenario("runaway task", 2.5, Kind.TIMED_OUT, Optimise),
    Scenario("stuck task", 1.6, Kind.STUCK, Crawl),
    Scenario("hung C call", 2.5, Kind.TIMED_OUT, Add),
    Scenario("one more task", 0.7, Kind.DONE, Resize),
)
