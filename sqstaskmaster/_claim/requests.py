"""The requests of one claim, bounded: each in a thread of its own, and waited for only so long.

Blocking, for a handler that has one message. A worker with slots makes its requests itself, many in one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from sqstaskmaster._claim.claim import Claim, Request
from sqstaskmaster._claim.deletion import LONGEST_WAIT_SECONDS, Deleted, Deletion
from sqstaskmaster._claim.report import Report
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster._sqs.answers import is_claim_lost
from sqstaskmaster.errors import NoAnswer

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
    """The extensions of one claim. What SQS answers is told to the claim by `collect`, in the caller's thread.

    That one fails is told by the thread that made it: log handlers and error services may block, and the caller may be
    a signal handler.
    """

    def __init__(self, message: Any, claim: Claim, clock: Clock, report: Report) -> None:
        self._message = message
        self._claim = claim
        self._clock = clock
        self._report = report
        self._sent: list[_Extension] = []

    def send(self, seconds: int | None = None) -> BoundedCall | None:
        """Send an extension, for `seconds` or what the claim asks for. None where there is nothing to be had by it."""
        request = self._claim.begin_extension(self._clock(), seconds)
        if request is None:
            return None
        extension = _Extension(request)
        extension.call = BoundedCall(lambda: self._extend(extension))
        self._sent.append(extension)
        return extension.call

    def collect(self) -> None:
        """Tell the claim what has been answered. Raises what no Exception is, as a KeyboardInterrupt in a call."""
        for extension in sorted((each for each in self._sent if each.done), key=lambda each: each.answered_at):
            try:
                self._sent.remove(extension)
            except ValueError:
                continue  # told by an alarm that came in between
            error = extension.error
            if error is None:
                self._claim.extended(extension.request, extension.answered_at)
            elif isinstance(error, Exception):
                self._claim.failed(extension.request, error, extension.answered_at)
            else:
                raise error

    def give_up(self) -> bool:
        """Wait no longer for what is under way: another is due soon. An answer that comes counts all the same.

        Whether there was something, said once for each request.
        """
        waited_for = [extension for extension in self._sent if not extension.given_up]
        for extension in waited_for:
            extension.given_up = True
            self._claim.unanswered(extension.request, self._clock())
        return bool(waited_for)

    def wait(self, seconds: float) -> bool:
        """Whether nothing is under way, after waiting at most `seconds` for that."""
        deadline = time.monotonic() + seconds
        return all(each.call is None or each.call.wait(deadline - time.monotonic()) for each in [*self._sent])

    def _extend(self, extension: _Extension) -> None:
        """In a thread of its own."""
        seconds = extension.request.seconds
        try:
            self._message.change_visibility(VisibilityTimeout=seconds)
        except Exception as error:
            extension.answered_at = self._clock()
            if not is_claim_lost(error):  # that one is for `claim_lost` to tell
                text = "Claim not extended, the task goes on, message: %s"
                self._report.trouble(text, error, "extension_failed")
            raise
        extension.answered_at = self._clock()
        self._report.log(logging.DEBUG, "extended", "Claim extended by %d s: %s", seconds, self._message)


def delete(message: Any, claim: Claim, clock: Clock, report: Report, apart: bool) -> bool:
    """Delete the message of finished work, trying again while the claim is held. Whether it is deleted.

    :param apart: make the first try in a thread too, which costs a fifth of the request. Hours of finished work are
        worth one, so that a try that hangs is given up for another in time.
    """
    deletion = Deletion(claim, clock())
    error = _delete_apart(message, deletion.begin(clock())) if apart else _delete_here(message)
    while error is not None:
        verdict = deletion.answered(error, clock())
        if verdict is Deleted.DONE:
            return True
        if verdict is Deleted.GIVE_UP:
            report.not_deleted(error)
            return False
        report.log(logging.WARNING, "delete_retried", "Delete failed, trying again: %s", error)
        time.sleep(max(0.0, deletion.due - clock()))
        error = _delete_apart(message, deletion.begin(clock()))
    return True


def _delete_here(message: Any) -> Exception | None:
    """Why it failed, if it did."""
    try:
        message.delete()
    except Exception as error:
        return error
    return None


def _delete_apart(message: Any, seconds: float) -> Exception | None:
    """The same, waited for so long."""
    call = BoundedCall(message.delete)
    if not call.wait(seconds):
        return NoAnswer(f"SQS has not answered the delete of {message}")
    if call.error is None or isinstance(call.error, Exception):
        return call.error
    raise call.error


def change_visibility(message: Any, seconds: int, report: Report) -> bool:
    """Set the visibility timeout after the task has ended; a failure is told and goes no further."""
    call = BoundedCall(lambda: message.change_visibility(VisibilityTimeout=seconds))
    answered = call.wait(LONGEST_WAIT_SECONDS)
    error = call.error if answered else NoAnswer(f"SQS has not answered the return of {message}")
    if isinstance(error, Exception):
        text = "Message not given back, it comes back when its visibility timeout ends: %s"
        report.trouble(text, error, "give_back_failed")
    return error is None
