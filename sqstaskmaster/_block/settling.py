"""Carries out one message's settlement step by step, waiting for each step."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from sqstaskmaster._block.requests import Clock, Extensions
from sqstaskmaster._claim import owner
from sqstaskmaster._claim.attempt import CALLBACK_SECONDS, Attempt
from sqstaskmaster._claim.deletion import LONGEST_WAIT_SECONDS
from sqstaskmaster._claim.report import CALLBACK_GIVEN_UP, printable
from sqstaskmaster._claim.settlement import (
    Ask,
    ChangeVisibility,
    Delete,
    LetGo,
    Pause,
    Result,
    Say,
    Send,
    Settlement,
    Step,
)
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster.errors import NoAnswer

# How often a wait checks whether the worker is stopping.
_LOOK_SECONDS = 0.5


class Settling:
    """Carries out the settlement of one attempt.

    :param extensions: those under way; None for a message whose claim was never extended.
    :param extend: extends the claim by that many seconds.
    """

    def __init__(
        self,
        attempt: Attempt,
        clock: Clock,
        extensions: Extensions | None = None,
        extend: Callable[[int], None] | None = None,
    ) -> None:
        self._attempt = attempt
        self._clock = clock
        self._extensions = extensions
        self._extend = extend
        self._tries = 0
        self._began = time.monotonic()

    def carry_out(self, settlement: Settlement) -> None:
        """Take all its steps."""
        try:
            step = next(settlement)
            while True:
                value, error = None, None
                try:
                    value = self._take(step)
                except Exception as raised:
                    error = raised
                step = settlement.send(Result(value, error, self._clock()))
        except StopIteration:
            pass

    def _take(self, step: Step) -> Any:
        if isinstance(step, Say):
            return step.function()
        if isinstance(step, Ask):
            return ask(self._attempt, step.function, step.name, self._began)
        if isinstance(step, LetGo):
            if self._extensions is not None:
                self._extensions.settle(step.seconds)
            return None
        if isinstance(step, Delete):
            return self._delete(step.seconds)
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, ChangeVisibility):
            change = functools.partial(self._attempt.change_visibility, step.seconds)
            return self._bounded(change, LONGEST_WAIT_SECONDS, "return")
        if isinstance(step, Pause):
            if self._attempt.terms.time_is_up(self._began, time.monotonic()):
                raise NoAnswer("the worker stops")
            time.sleep(max(0.0, step.seconds))
            return False
        return self._finish()

    def _delete(self, seconds: float) -> Any:
        """Delete the message. Outside a worker, a short task's first try runs here: a thread adds a fifth to the cost.

        Hours of finished work justify a thread, so that a try that hangs gives way to another in time; so does a worker
        that may have to stop.
        """
        message, attempt = self._attempt.message, self._attempt
        self._tries += 1
        if self._tries == 1 and attempt.report.seconds < attempt.claim.alarm_timeout and not attempt.terms.of_worker:
            return message.delete()
        return self._bounded(message.delete, seconds, "delete")

    def _send(self, step: Send) -> Any:
        """Send, extending the claim meanwhile."""
        claim, found = self._attempt.claim, []
        call = BoundedCall(lambda: found.append(step.request()))
        until = time.monotonic() + step.seconds
        while not call.done:
            left = until - time.monotonic()
            if left <= 0 or self._attempt.terms.time_is_up(self._began, time.monotonic()):
                raise NoAnswer(f"no answer in {step.seconds:g} s")
            now = self._clock()
            due = max(0.0, claim.due(now) - now)
            if call.wait(min(due, left, _LOOK_SECONDS)) or due > _LOOK_SECONDS:
                continue
            if self._extend is not None:
                try:
                    self._extend(claim.sqs_timeout)
                except Exception as error:  # raised by claim_lost
                    self._attempt.report.trouble("claim_lost failed for message: %s", error, "claim_lost_failed")
        if call.error is not None:
            raise call.error
        return found[0]

    def _finish(self) -> None:
        self._attempt.report.finished()
        if self._attempt.terms.on_finish is not None:
            self._attempt.terms.on_finish(self._attempt)

    def _bounded(self, request: Callable[[], Any], seconds: float, what: str) -> Any:
        """Make a request, and wait for it for at most `seconds`."""
        attempt = self._attempt
        call = BoundedCall(request)
        if not _wait(attempt, call, seconds, self._began):
            raise NoAnswer(f"SQS has not answered the {what} of {attempt.report.subject}")
        if call.error is not None:
            raise call.error


def ask(attempt: Attempt, function: Callable[[], Any], name: str, began: float) -> Any:
    """Call the user's code. In a worker the call is given up after a while, or soon after a request to stop.

    :param name: the callback's name.
    :param began: when the settlement of the attempt began, by the monotonic clock.
    """
    if not attempt.terms.of_worker:
        return function()
    values = []

    def call() -> None:
        with owner.only_in_this_process():
            values.append(function())

    asked = BoundedCall(call)
    if not _wait(attempt, asked, CALLBACK_SECONDS, began):
        report = attempt.report
        report.log(
            logging.WARNING, "callback_given_up", CALLBACK_GIVEN_UP, name, printable(attempt.task), CALLBACK_SECONDS
        )
        raise NoAnswer(f"{name}() has not returned")
    if asked.error is not None:
        raise asked.error
    return values[0]


def _wait(attempt: Attempt, call: BoundedCall, seconds: float, began: float) -> bool:
    """Whether the call ends within so many seconds, or fewer if the worker stops."""
    if not attempt.terms.of_worker:
        return call.wait(seconds)
    until = time.monotonic() + seconds
    while not call.wait(min(_LOOK_SECONDS, max(0.0, until - time.monotonic()))):
        now = time.monotonic()
        if now >= until or attempt.terms.time_is_up(began, now):
            return False
    return True
