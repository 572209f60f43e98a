"""The extensions of one claim, bounded: each runs in a thread of its own, and is waited for only so long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from sqstaskmaster._claim.claim import Claim, Request
from sqstaskmaster._claim.report import Report
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster._sqs.answers import is_claim_lost

Clock = Callable[[], float]


class _Extension:
    """One request under way, or answered."""

    __slots__ = ("request", "call", "answered_at", "given_up")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.call: BoundedCall | None = None
        self.answered_at = 0.0
        self.given_up = False

    @property
    def done(self) -> bool:
        return self.call is not None and self.call.done

    @property
    def error(self) -> BaseException | None:
        return None if self.call is None else self.call.error


class Extensions:
    """The extensions of one claim. `collect` passes the answers of SQS to the claim, in the caller's thread.

    A failure is reported by the thread that made the request: log handlers and error services may block, and the caller
    may be a signal handler.
    """

    def __init__(self, message: Any, change: Callable[[int], Any], claim: Claim, clock: Clock, report: Report) -> None:
        self._message = message
        self._change = change
        self._claim = claim
        self._clock = clock
        self._report = report
        self._sent: list[_Extension] = []

    def send(self, seconds: int | None = None) -> BoundedCall | None:
        """Send an extension, for `seconds` or what the claim asks for. None if it would gain nothing."""
        request = self._claim.begin_extension(self._clock(), seconds)
        if request is None:
            return None
        extension = _Extension(request)
        extension.call = BoundedCall(lambda: self._extend(extension))
        self._sent.append(extension)
        return extension.call

    def collect(self) -> None:
        """Pass answers to the claim. Re-raises what is not an Exception, such as a KeyboardInterrupt in a call."""
        for extension in sorted((each for each in self._sent if each.done), key=lambda each: each.answered_at):
            try:
                self._sent.remove(extension)
            except ValueError:
                continue  # an alarm that came in between has passed it on
            error = extension.error
            if error is None:
                self._claim.extended(extension.request, extension.answered_at)
            elif isinstance(error, Exception):
                self._claim.failed(extension.request, error, extension.answered_at)
            else:
                raise error

    def give_up(self) -> bool:
        """Stop waiting for the requests under way: another is due soon. A late answer still counts.

        True if there were any that had not been given up before.
        """
        waited_for = [extension for extension in self._sent if not extension.given_up]
        for extension in waited_for:
            extension.given_up = True
            self._claim.unanswered(extension.request, self._clock())
        return bool(waited_for)

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` until nothing is under way. Whether that is so."""
        if not self._sent:
            return True
        deadline = time.monotonic() + seconds
        return all(each.call is None or each.call.wait(deadline - time.monotonic()) for each in [*self._sent])

    def settle(self, seconds: float) -> None:
        """The task has ended: wait at most `seconds` for what is under way, and pass the answers to the claim."""
        if seconds:
            self.wait(seconds)
        self.collect()

    def _extend(self, extension: _Extension) -> None:
        """Make the request; runs in a thread of its own."""
        seconds = extension.request.seconds
        try:
            self._change(seconds)
        except Exception as error:
            extension.answered_at = self._clock()
            if not is_claim_lost(error):  # `claim_lost` reports that one
                text = "Claim not extended, the task goes on, message: %s"
                self._report.trouble(text, error, "extension_failed")
            raise
        extension.answered_at = self._clock()
        self._report.log(logging.DEBUG, "extended", "Claim extended by %d s: %s", seconds, self._report.subject)
