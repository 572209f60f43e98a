"""What becomes of a message once its task has ended, as a state machine: no clock, no thread, no request of its own.

done                      deleted, with retries while the claim is held
continued, dead-lettered  sent on first, deleted second; what cannot be sent on has failed
failed, timed out, stuck  comes back when `retry_delay` says, or the claim ends; then it is reported
interrupted               visible at once; then it is reported
stopped                   deleted as above, or visible at once, whatever the task answered; nothing is reported
claim lost                nothing: another worker may be running it

Each settlement is a generator. It yields the next step and is sent the step's `Result`. Its driver carries out the
steps one after the other and decides nothing: `_block.settling` waits for each, `_service.settling` has many under way.
To add an outcome, add it to `Outcome`, and to `settle`.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from sqstaskmaster._claim import forwarding, owner
from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster._claim.deletion import Deleted, Deletion
from sqstaskmaster._claim.destinations import LAST_RECEIVE, NOT_DEAD_LETTERED
from sqstaskmaster._sqs.answers import Kind, kind_of
from sqstaskmaster._sqs.limits import is_number
from sqstaskmaster.endings import Continue, Outcome
from sqstaskmaster.errors import CannotContinue, NoAnswer

# Outcomes of messages whose task was never started.
GIVEN_BACK = "given back"
REFUSED = "refused"

# For how long sending a message on is tried, while its claim is kept. Then the pauses between tries, doubled each time.
SEND_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0

# How long to wait for an extension under way: it would hide a message again that is returned meanwhile.
_EXTENSION_SECONDS = 1.0


class Send(NamedTuple):
    """Make this request, wait at most `seconds` for it, and keep the claim meanwhile. Value: what it returned."""

    request: Callable[[], Any]
    seconds: float


class Delete(NamedTuple):
    """Try once to delete the message, and wait at most `seconds` for the answer."""

    seconds: float


class LetGo(NamedTuple):
    """Stop extending the claim. Wait at most `seconds` for extensions under way."""

    seconds: float


class ChangeVisibility(NamedTuple):
    """Set the message's visibility timeout, once, to `seconds` from now."""

    seconds: int


class Pause(NamedTuple):
    """Let `seconds` pass. Value: True if a delete that was given up has succeeded meanwhile. Error: there is no time
    for another try.
    """

    seconds: float


class Ask(NamedTuple):
    """Call this user code: it logs, or notifies, or answers. Value: what it returned."""

    function: Callable[[], Any]
    name: str = "notify"


class Say(NamedTuple):
    """Have this written to the log, without waiting for it."""

    function: Callable[[], Any]


class Finish(NamedTuple):
    """The task's attempt is over: log the one line about it, and call `on_finish`."""


Step = Send | Delete | LetGo | ChangeVisibility | Pause | Ask | Say | Finish


class Result(NamedTuple):
    """The result of a step. `now`: seconds of the claim's clock."""

    value: Any
    error: BaseException | None
    now: float


Settlement = Generator[Step, Result, None]


def settle(attempt: Attempt, exception: Any, now: float) -> Settlement:
    """Settle a task that has ended.

    :param exception: what ended it, None if it is done. Anything that is not an exception (a mock) is a failure.
    """
    report = attempt.report
    lost = attempt.lost_now(now)
    if lost is not None:
        yield from _tell_lost(attempt, lost)
    continuation = exception if isinstance(exception, Continue) else attempt.answer
    interrupted = isinstance(exception, BaseException) and not isinstance(exception, (Exception, Continue))
    if attempt.stopped_as is Outcome.STOPPED:
        yield from _end_stopped(attempt)
    elif attempt.stops_for_lost_claim:
        attempt.end_as(Outcome.CLAIM_LOST)
        yield LetGo(0.0)
    elif exception is not None and exception is attempt.lost_error:
        attempt.end_as(Outcome.CLAIM_LOST if attempt.terms.of_worker else Outcome.FAILED)
        yield LetGo(0.0)
        yield Ask(functools.partial(report.failed, exception))
    elif continuation is not None:
        problem = yield from _send_successor(attempt, continuation, now)
        if problem is None:
            yield from _delete(attempt, Outcome.CONTINUED)
        elif interrupted:
            yield from _keep(attempt, Outcome.INTERRUPTED, problem, at_once=True)
        else:
            yield from _keep(attempt, attempt.stopped_as or Outcome.FAILED, problem)
    elif exception is None:
        yield from _delete(attempt, Outcome.DONE)
    elif interrupted:
        yield from _keep(attempt, Outcome.INTERRUPTED, exception, at_once=True)
    elif (yield from _is_dead_lettered(attempt, exception, now)):
        yield from _delete(attempt, Outcome.DEAD_LETTERED)
        yield Ask(functools.partial(report.failed, exception))
    else:
        yield from _keep(attempt, attempt.stopped_as or Outcome.FAILED, exception)
    yield Finish()


def refuse(attempt: Attempt, error: BaseException) -> Settlement:
    """Settle a message that is no task of ours: report it, and leave it to the redrive policy."""
    report = attempt.report
    report.outcome = REFUSED
    yield LetGo(0.0)
    yield Ask(lambda: report.refused(error))


def give_back(attempt: Attempt, delay: int = 0) -> Settlement:
    """Settle a message whose task is not started: visible to others at once, or in `delay` seconds."""
    report = attempt.report
    report.outcome = GIVEN_BACK
    changed = yield from _return(attempt, delay)
    if changed:
        yield Say(lambda: report.log(logging.INFO, "given_back", "Message given back, unstarted: %s", report.subject))
        yield Ask(functools.partial(_warn_of_last_receive, attempt))


def leave_lost(attempt: Attempt, now: float) -> Settlement:
    """Settle a message whose claim ended before its task was started: another worker may be running it."""
    report = attempt.report
    lost = attempt.lost_now(now) or attempt.claim.lost or NoAnswer("?")
    attempt.end_as(Outcome.CLAIM_LOST)
    yield LetGo(0.0)
    text = "Claim lost, the task is not run: %s"
    yield Ask(lambda: report.trouble(text, lost, "claim_lost", logging.ERROR))
    yield Finish()


# -- the ends ---------------------------------------------------------------------------------------------------------


def _tell_lost(attempt: Attempt, lost: Exception) -> Settlement:
    told = yield Ask(lambda: attempt.handler.claim_lost(lost), "claim_lost")
    error = told.error
    if error is not None:  # the task has ended, so there is nothing left to stop
        report = attempt.report
        yield Ask(lambda: report.trouble("claim_lost failed for message: %s", error, "claim_lost_failed"))


def _delete(attempt: Attempt, outcome: Outcome) -> Settlement:
    """Delete the message, with retries while the claim is held: finished work must not be repeated."""
    attempt.end_as(outcome)
    report = attempt.report
    started = yield LetGo(0.0)
    claim = attempt.claim
    deletion = Deletion(claim, started.now)
    result = yield Delete(deletion.begin(started.now))
    while True:
        error = _exception_of(result)
        if error is not None and attempt.claim is not claim:  # it came back meanwhile, and has a new receipt
            claim = attempt.claim
            deletion = Deletion(claim, result.now)
            result = yield Delete(deletion.begin(result.now))
            continue
        verdict = deletion.answered(error, result.now)
        if verdict is Deleted.DONE:
            return
        if verdict is Deleted.RETRY:
            yield Say(_retried(attempt, error))
            paused = yield Pause(deletion.due - result.now)
            if paused.value:
                return
            if paused.error is None:
                result = yield Delete(deletion.begin(paused.now))
                continue
        report.comes_back_in = attempt.claim.left(result.now)
        yield Ask(functools.partial(report.not_deleted, error or NoAnswer("?")))
        return


def _retried(attempt: Attempt, error: Exception | None) -> Callable[[], Any]:
    return lambda: attempt.report.log(logging.WARNING, "delete_retried", "Delete failed, trying again: %s", error)


def _exception_of(result: Result) -> Exception | None:
    error = result.error
    return error if error is None or isinstance(error, Exception) else NoAnswer(repr(error))


def _keep(attempt: Attempt, outcome: Outcome, exception: Any, at_once: bool = False) -> Settlement:
    """Keep the message. It comes back at once, or when `retry_delay` says: by default when its claim ends.

    Report it only then: no other worker should have to wait for a slow error service.
    """
    attempt.end_as(outcome)
    report = attempt.report
    delay: int | None = 0
    if not at_once:
        asked = yield Ask(functools.partial(_retry_delay, attempt, exception), "retry_delay")
        delay = asked.value if asked.error is None else None
    yield from _return(attempt, delay)
    yield Ask(functools.partial(report.failed, exception))
    if at_once and attempt.claim.lost is None:
        yield Ask(functools.partial(_warn_of_last_receive, attempt))


def _end_stopped(attempt: Attempt) -> Settlement:
    """The task was stopped by order: an expected end, reported only to the process that ordered it."""
    if not attempt.retry:
        yield from _delete(attempt, Outcome.STOPPED)
        return
    attempt.end_as(Outcome.STOPPED)
    yield from _return(attempt, 0)
    if attempt.claim.lost is None:
        yield Ask(functools.partial(_warn_of_last_receive, attempt))


def _return(attempt: Attempt, delay: int | None) -> Generator[Step, Result, bool]:
    """Make the message visible in `delay` seconds; None: when its claim ends. Returns whether a request did so.

    Does nothing if the claim is gone: another worker may be running it.
    """
    report = attempt.report
    let_go = yield LetGo(0.0 if delay is None else _EXTENSION_SECONDS)
    claim = attempt.claim
    # Checked last: `retry_delay` and the wait take time, while the claim runs out.
    if claim.lapsed(let_go.now) or claim.lost is not None:
        return False
    report.comes_back_in = claim.left(let_go.now) or None
    if delay is None:
        return False
    now, pause = let_go.now, _FIRST_PAUSE_SECONDS
    while attempt.claim.lost is None:
        claim = attempt.claim
        seconds = claim.cut(delay or attempt.terms.soonest(), now)
        changed = yield ChangeVisibility(seconds)
        error, now = changed.error, changed.now
        # Retry only if nothing has happened: a message that is visible may already be another worker's, and would
        # become visible once more.
        if error is None or kind_of(error) is not Kind.REFUSED_FOR_NOW or now + pause >= claim.earliest_end:
            break
        now = (yield Pause(pause)).now
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    else:
        return False
    if error is not None:
        problem = error
        yield Ask(lambda: report.trouble(_NOT_GIVEN_BACK, problem, "give_back_failed"))
        return False
    report.comes_back_in = seconds
    return True


_NOT_GIVEN_BACK = "Message not given back, it comes back when its visibility timeout ends: %s"


def _retry_delay(attempt: Attempt, exception: BaseException) -> int | None:
    """The result of `retry_delay`, in whole seconds. A faulty one is reported, and counts as None."""
    report = attempt.report
    try:
        with owner.only_in_this_process():
            delay = attempt.handler.retry_delay(exception, report.receive_count or 1)
        if delay is not None and (not is_number(delay) or delay < 0):
            raise ValueError(f"retry_delay must return a number of seconds, 0 or more, or None, not {delay!r}")
    except Exception as error:
        text = "No retry delay, the message comes back when its visibility timeout ends: %s"
        report.trouble(text, error, "retry_delay_failed")
        return None
    return None if delay is None else math.ceil(delay)


def _warn_of_last_receive(attempt: Attempt) -> None:
    """Warn of a message that was returned on the last receive that its queue's redrive policy allows."""
    report, origin = attempt.report, attempt.receipt.origin
    if origin is not None and origin.is_last_receive(attempt.message):
        report.log(logging.WARNING, "last_receive", LAST_RECEIVE, report.task, report.receive_count, report.subject)


# -- sending on -------------------------------------------------------------------------------------------------------


def _send_successor(attempt: Attempt, ending: Continue, now: float) -> Generator[Step, Result, CannotContinue | None]:
    """Returns None if it was sent, else why not. Checked first, so that what cannot run is never sent."""
    error: BaseException | None
    try:
        request = _successor(attempt, ending)
    except Exception as refused:  # the user's Continue may hold anything
        error = refused
    else:
        error = (yield from _send(request, now))[1]
    if error is None or isinstance(error, CannotContinue):
        return error
    problem = CannotContinue(f"Task {attempt.task!r} cannot continue, its successor was not sent: {error}")
    problem.__cause__ = error
    return problem


def _successor(attempt: Attempt, ending: Continue) -> Callable[[], Any]:
    most, origin = attempt.most, attempt.receipt.origin
    if most is None:
        raise CannotContinue(
            f"Task {attempt.task!r} cannot continue in a MessageHandler, which runs it in the worker's process: make "
            "it a ProcessMessageHandler"
        )
    kwargs = attempt.kwargs_with(ending.kwargs)
    receipt, delay = attempt.receipt, ending.delay_seconds
    writer = None if origin is None else origin.writer
    request = forwarding.successor(attempt.message, attempt.task, kwargs, delay, most, receipt.has_attributes, writer)
    assert origin is not None  # the receiver that asked for the attributes also left the origin
    return lambda: origin.send(request)


def _is_dead_lettered(attempt: Attempt, exception: Any, now: float) -> Generator[Step, Result, bool]:
    """Send it to the dead-letter queue with the reason, if that is due. Returns whether it was due, and sent."""
    receipt, task = attempt.receipt, attempt.task
    reason: BaseException | None = forwarding.without_retry(exception, attempt.dead_letter)
    if reason is None and attempt.terms.dead_letter_reasons and isinstance(exception, BaseException):
        reason = exception
    if reason is None:
        return False
    origin = receipt.origin
    if origin is None:
        was_due = False
        error: BaseException | None = CannotContinue("no TaskManager received its message, so its queue is not known")
    else:
        send = functools.partial(origin.send_dead_letter, attempt.message, task, reason, receipt.has_attributes)
        was_due, error = yield from _send(send, now)
    if error is not None and (origin is None or origin.is_news(error)):
        problem = error
        yield Say(lambda: attempt.report.log(logging.WARNING, "dead_letter_failed", NOT_DEAD_LETTERED, task, problem))
    return error is None and bool(was_due)


def _send(send: Callable[[], Any], now: float) -> Generator[Step, Result, tuple[Any, BaseException | None]]:
    """Have it sent. Returns what it returned, and what it raised. Retries what may succeed later."""
    until, pause = now + SEND_SECONDS, _FIRST_PAUSE_SECONDS
    while True:
        result = yield Send(send, until - now)
        now = result.now
        error = result.error
        # A duplicate successor does not repeat the finished step, a rerun would: so an unknown result is retried too.
        if error is None or isinstance(error, CannotContinue) or kind_of(error) is Kind.REFUSED or now + pause >= until:
            return result.value, error
        now = (yield Pause(pause)).now
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
