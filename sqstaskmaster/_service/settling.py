"""Carries out many settlements concurrently, beside the running tasks: no step of one waits for another's.

Deletes that are due together are sent as one request, and so are changes of visibility.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from sqstaskmaster._claim.attempt import CALLBACK_SECONDS, Attempt
from sqstaskmaster._claim.deletion import LONGEST_WAIT_SECONDS
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
from sqstaskmaster._service.facts import finished_of
from sqstaskmaster._service.running import say_given_up
from sqstaskmaster._service.source import Source
from sqstaskmaster._service.world import CALLBACKS, Timer, World
from sqstaskmaster._sqs.queues import Errors
from sqstaskmaster.errors import NoAnswer

# A delete may wait this long for others to join it, if other tasks run or soon will.
_LINGER_SECONDS = 0.025


class Settling:
    """All settlements of a worker.

    :param on_finish: see Worker.
    :param others: whether other messages of a queue are likely to be deleted soon, so that requests may wait a moment
        to be shared.
    :param over: called with an attempt when nothing more is done about it.
    """

    def __init__(
        self,
        world: World,
        on_finish: Callable[[Any], Any] | None,
        others: Callable[[Source], bool],
        over: Callable[[Attempt], None],
    ) -> None:
        self._world = world
        self._on_finish = on_finish
        self._others = others
        self._over = over
        self._cases: dict[Attempt, _Case] = {}
        self._outboxes: dict[tuple[Source, bool], _Outbox] = {}

    def __len__(self) -> int:
        return len(self._cases)

    def has_begun(self, attempt: Attempt) -> bool:
        """Whether its settlement is being carried out."""
        return attempt in self._cases

    def adopts(self, attempt: Attempt) -> bool:
        """Whether the settlement would continue under a new receipt: not once the message is returned, or left."""
        case = self._cases.get(attempt)
        return case is not None and case.adopts

    def keeps_claim(self, attempt: Attempt) -> bool:
        """Whether the claim is still extended."""
        case = self._cases.get(attempt)
        return case is not None and not case.let_go

    def begin(self, attempt: Attempt, source: Source, settlement: Settlement, waits: bool = False) -> None:
        """Begin to carry out a settlement, which from now on belongs to this object.

        :param waits: its last step, to report the end, is taken only after `let_finish`.
        """
        case = self._cases[attempt] = _Case(attempt, source, settlement)
        case.waits = waits
        self._advance(case, None)

    def let_finish(self, attempt: Attempt) -> None:
        """Everything to report about its end is known now."""
        case = self._cases.get(attempt)
        if case is not None:
            case.waits = False
            if case.at_finish:
                self._finish(case)
                self._answered(case, case.turn, None, None)

    def _advance(self, case: _Case, result: Result | None) -> None:
        """Take steps until one has to be waited for."""
        while True:
            case.turn += 1
            try:
                step = next(case.settlement) if result is None else case.settlement.send(result)
            except StopIteration:
                break
            except Exception as error:  # a bug of ours: it must affect only this message
                text = "Message %s is not settled, it comes back when its visibility timeout ends"
                self._world.log(logging.ERROR, text, case.attempt.report.message_id, exc_info=error)
                break
            if not self._take(case, step):
                return
            result = Result(None, None, self._world.claim_now())
        case.source.heartbeat.let_go(case.attempt, 0.0, _nothing)
        del self._cases[case.attempt]
        self._over(case.attempt)

    def _take(self, case: _Case, step: Step) -> bool:
        """Take a step. Returns whether it is done already; else `_answered` is called for it later."""
        world, attempt, source = self._world, case.attempt, case.source
        answered = functools.partial(self._answered, case, case.turn)
        case.began(step)
        if isinstance(step, Ask):
            asked = functools.partial(self._asked, step.name, attempt, answered)
            world.call(CALLBACKS, step.function, asked, CALLBACK_SECONDS)
        elif isinstance(step, Say):
            world.say(step.function)
            return True
        elif isinstance(step, LetGo):
            source.heartbeat.let_go(attempt, step.seconds, lambda: answered(None, None))
        elif isinstance(step, Send):
            world.call(source.requests, step.request, answered, step.seconds)
        elif isinstance(step, Delete):
            self._outbox(source, True).add(_Entry(attempt, 0, step.seconds, answered, self._deleted_late(case)))
        elif isinstance(step, ChangeVisibility):
            entry = _Entry(attempt, step.seconds, LONGEST_WAIT_SECONDS, answered, _nothing)
            self._outbox(source, False).add(entry)
        elif isinstance(step, Pause):
            world.at(world.now() + step.seconds, lambda: answered(None, None))
        elif case.waits:
            case.at_finish = True
        else:
            self._finish(case)
            return True
        return False

    def _asked(
        self,
        name: str,
        attempt: Attempt,
        answered: Callable[[Any, BaseException | None], None],
        value: Any,
        error: BaseException | None,
    ) -> None:
        if isinstance(error, NoAnswer):
            say_given_up(self._world, attempt, name)
        answered(value, error)

    def _answered(self, case: _Case, turn: int, value: Any, error: BaseException | None) -> None:
        if case.turn == turn:  # else the answer is too late
            self._advance(case, Result(value, error, self._world.claim_now()))

    def _deleted_late(self, case: _Case) -> Callable[[], None]:
        """For a delete that was given up and then succeeded: there is nothing left to wait for."""

        def late() -> None:
            if case.deleting and case.attempt in self._cases:
                self._answered(case, case.turn, True, None)

        return late

    def _finish(self, case: _Case) -> None:
        report, on_finish = case.attempt.report, self._on_finish
        if report.is_said(logging.INFO):
            self._world.say(report.finished)
        if on_finish is not None:
            tell = functools.partial(call_on_finish, on_finish, case.attempt)
            self._world.call(CALLBACKS, tell)

    def _outbox(self, source: Source, deletes: bool) -> _Outbox:
        outbox = self._outboxes.get((source, deletes))
        if outbox is None:
            outbox = self._outboxes[source, deletes] = _Outbox(self._world, source, deletes, self._others)
        return outbox


class _Case:
    """One settlement that is being carried out.

    `turn`: the number of its step. `let_go`: the claim is no longer extended. `deleting`: it is busy with the delete.
    `adopts`: it would continue under a new receipt if the message came back. `waits`: it may not finish yet.
    `at_finish`: it has only to finish.
    """

    __slots__ = (
        "attempt",
        "source",
        "settlement",
        "turn",
        "let_go",
        "deleting",
        "adopts",
        "waits",
        "at_finish",
    )

    def __init__(self, attempt: Attempt, source: Source, settlement: Settlement) -> None:
        self.attempt = attempt
        self.source = source
        self.settlement = settlement
        self.turn = 0
        self.let_go = self.deleting = self.waits = self.at_finish = False
        self.adopts = True

    def began(self, step: Step) -> None:
        """It has reached this step."""
        if isinstance(step, Say):
            return
        self.let_go = self.let_go or isinstance(step, LetGo)
        self.deleting = isinstance(step, Delete) or self.deleting and isinstance(step, Pause)
        # A message that was made visible comes back because of that, and one that is only reported is no longer held.
        self.adopts = isinstance(step, (Send, LetGo, Delete, Pause)) or isinstance(step, Ask) and not self.let_go


class _Entry(NamedTuple):
    """One message's part of a request. `late()` is called if it succeeds after it was given up."""

    attempt: Attempt
    seconds: int
    patience: float
    answered: Callable[[Any, BaseException | None], None]
    late: Callable[[], None]


class _Outbox:
    """The deletes of one queue, or its changes of visibility, that are sent together."""

    def __init__(self, world: World, source: Source, deletes: bool, others: Callable[[Source], bool]) -> None:
        self._world = world
        self._source = source
        self._deletes = deletes
        self._others = others
        self._entries: list[_Entry] = []
        self._timer = Timer(None)

    def add(self, entry: _Entry) -> None:
        self._entries.append(entry)
        linger = _LINGER_SECONDS if self._deletes and self._others(self._source) else 0.0
        if self._timer.action is None or not linger:
            self._timer.cancel()
            self._timer = self._world.at(self._world.now() + linger, self._send)

    def _send(self) -> None:
        self._timer = Timer(None)
        entries, self._entries = self._entries, []
        calls = self._source.calls
        groups: dict[int, list[_Entry]] = {}
        for entry in entries:
            groups.setdefault(calls.most(entry.attempt.message), []).append(entry)
        for most, group in groups.items():
            for begin in range(0, len(group), most):
                self._send_batch(group[begin : begin + most])

    def _send_batch(self, entries: list[_Entry]) -> None:
        calls, messages = self._source.calls, [entry.attempt.message for entry in entries]
        if self._deletes:
            request = functools.partial(calls.delete, messages)
        else:
            changes = [(entry.attempt.message, entry.seconds) for entry in entries]
            request = functools.partial(calls.change_visibility, changes)
        timer = self._world.at(self._world.now() + max(entry.patience for entry in entries), lambda: give_up())

        def give_up() -> None:
            for entry in entries:
                entry.answered(None, NoAnswer(f"SQS has not answered a request about {entry.attempt.report.subject}"))

        def answered(errors: Errors | None, error: BaseException | None) -> None:
            in_time = timer.action is not None
            timer.cancel()
            for entry, failed in zip(entries, errors or [error] * len(entries)):
                if in_time:
                    entry.answered(None, failed)
                elif failed is None:
                    entry.late()

        self._world.call(self._source.requests, request, answered)


def call_on_finish(on_finish: Callable[[Any], Any], attempt: Attempt) -> None:
    """Call it with the attempt's facts. What it raises is logged, and goes no further."""
    try:
        on_finish(finished_of(attempt))
    except Exception as error:
        attempt.report.trouble("on_finish failed for message: %s", error, "on_finish_failed", logging.ERROR)


def _nothing() -> None:
    pass
