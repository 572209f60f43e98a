"""MessageHandler: the laws of one message. Time is a fake clock's; a real signal only where a signal is the subject."""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
import threading
import time
import unittest
import warnings
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from sqstaskmaster._claim import current, note
from sqstaskmaster._block.alarm_block import AlarmBlock
from sqstaskmaster._block.block import Block
from sqstaskmaster._block.requests import Extensions
from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster._signals.alarm import Alarm, Unborrowed
from sqstaskmaster.errors import (
    ClaimLapsed,
    HandlerStuck,
    HardTimeout,
    NoAnswer,
    NothingHasRun,
    SQSTaskMasterError,
    UnsupportedContext,
)
from sqstaskmaster.message_handler import MessageHandler, Outcome
from tests.guard import awake_seconds
from tests.support import wait_until
from tests.support.handling import (
    ATTRIBUTES,
    BEYOND_TOTAL,
    BODY,
    NO_ANSWERS,
    Answers,
    Clock,
    FakeMessage,
    Handler,
    SignalTestCase,
    client_error,
)
from tests.support.loops import LOOPS

CONTEXT = {"body": BODY, **ATTRIBUTES}
LOST_CODES = (
    "MessageNotInflight",
    "AWS.SimpleQueueService.MessageNotInflight",
    "ReceiptHandleIsInvalid",
    "InvalidParameterValue",
    "AWS.SimpleQueueService.NonExistentQueue",
    "QueueDoesNotExist",
)
TWELVE_HOURS = 12 * 60 * 60
NEVER = 60.0  # seconds: longer than any test, so that what waits for it fails its deadline


def raise_(error):
    raise error


def spin(condition, seconds=NEVER):
    """Python code that runs until the condition holds, and can be interrupted anywhere."""
    rest = began = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now > began + seconds:
            raise AssertionError("the deadline of the test is over")
        if now > rest + 0.05:
            # Virtual machines have been seen to lose the interrupts of a timer until the processor idles.
            time.sleep(0.001)
            rest = now


class ConstructorTest(unittest.TestCase):
    def refused(self, sqs, alarm, hard):
        with self.assertRaises(ValueError) as caught:
            Handler(FakeMessage(), sqs, alarm, hard)
        return str(caught.exception)

    def test_a_timeout_that_is_no_positive_number_is_refused_in_the_classic_words(self):
        for wrong in (0, -1, None, "5", True, float("nan"), float("inf")):
            with self.subTest(wrong=wrong):
                self.assertTrue(
                    self.refused(30, wrong, 60).startswith("Alarm timeout must be an integer greater than zero: ")
                )
                self.assertTrue(
                    self.refused(wrong, 10, 60).startswith("SQS timeout must be an integer greater than zero: ")
                )
                self.assertTrue(
                    self.refused(30, 10, wrong).startswith("Hard timeout must be an integer greater than zero: ")
                )

    def test_a_day_is_refused_with_the_way_to_run_for_longer_than_twelve_hours(self):
        self.assertIn("raise Continue(...)", self.refused(30, 10, 86400))

    def test_an_alarm_too_long_for_the_visibility_timeout_is_refused_in_the_classic_words(self):
        for alarm_timeout in (12, 13):
            said = self.refused(13, alarm_timeout, 60)
            self.assertEqual(
                f"Alarm timeout {alarm_timeout} is to long to reset the sqs timeout 13", said.partition(":")[0]
            )
            self.assertIn(": give alarm_timeout=4", said)
        self.assertIn("Worker's defaults are sqs_timeout=120, alarm_timeout=30", said)
        Handler(FakeMessage(), 13, 11.9, 60)

    def test_what_sqs_would_refuse_is_refused_at_once_naming_value_and_range(self):
        self.assertIn("30.5", self.refused(30.5, 10, 60))
        for sqs, hard in ((43201, 60), (30, 43200.5), (30, 10**400)):
            with self.subTest(sqs=sqs):
                text = self.refused(sqs, 10, hard)
                self.assertIn(str(max(sqs, hard)), text)
                self.assertIn("43200 seconds (12 hours)", text)
        Handler(FakeMessage(), 43200, 10, 43200)

    def test_fractions_are_fine_where_sqs_does_not_see_them(self):
        handler = Handler(FakeMessage(), 30.0, 0.25, 0.5)
        self.assertEqual((30, 0.25, 0.5), (handler.sqs_timeout, handler.alarm_timeout, handler.hard_timeout))
        self.assertIs(int, type(handler.sqs_timeout))

    def test_run_must_be_given(self):
        with self.assertRaises(TypeError):
            MessageHandler(FakeMessage(), 30, 10, 60)


class HandlerTestCase(SignalTestCase):
    def setUp(self):
        super().setUp()
        self.clock = Clock()
        # In the handler's module only: sleep() is the real one for everybody else.
        sleep = mock.patch("sqstaskmaster._block.settling.time", mock.Mock(wraps=time, sleep=self.advance))
        # Calls to a fake are answered at once, but a loaded machine may take its time to run their threads.
        wait = mock.patch.object(Attempt, "wait_seconds", 5.0)
        for patch in (sleep, wait):
            patch.start()
            self.addCleanup(patch.stop)

    def advance(self, seconds):
        self.clock.now += seconds

    def message(self, *args, expires_in=None, received_ago=0.0, task=None, **kwargs):
        message = FakeMessage(*args, **kwargs)
        if expires_in is not None:
            received = self.clock.now - received_ago
            seconds = expires_in + received_ago
            note.leave(message, note.Receipt(received, received, seconds, task))
        return message

    def handler(self, message=None, *args, kind=Handler, **kwargs):
        return kind(self.message() if message is None else message, *args, clock=self.clock, **kwargs)


class EnterTest(HandlerTestCase):
    def test_entering_claims_the_message_then_arms_the_alarm_and_gives_the_handler(self):
        handler = self.handler(self.message(on_change=lambda: self.assertEqual(0, handler.armed())))
        with handler as entered:
            self.assertIs(handler, entered)
            self.assertEqual([30], handler._message.changes)
            self.assertEqual(handler._handle_alarm, signal.getsignal(signal.SIGALRM))
            self.assertAlmostEqual(10, handler.armed(), delta=1)
        self.assertEqual([], handler.notified)

    def test_the_hard_timeout_is_armed_where_it_comes_first(self):
        with self.handler(None, 30, 10, 3.5) as handler:
            self.assertAlmostEqual(3.5, handler.armed(), delta=0.5)

    def test_a_fresh_claim_is_not_extended_and_a_short_task_costs_no_request_but_its_delete(self):
        message = self.message(expires_in=29.0)
        with self.handler(message):
            pass
        self.assertEqual(([], 1), (message.changes, message.deletes))

    def test_a_claim_that_is_not_fresh_is_extended(self):
        message = self.message(expires_in=28.9)
        with self.handler(message):
            self.assertEqual([30], message.changes)

    def test_a_message_that_says_nothing_is_always_extended(self):
        for _ in range(2):
            message = self.message()
            with self.handler(message):
                self.assertEqual([30], message.changes)

    def test_a_mock_is_a_message_that_says_nothing(self):
        for kind in (mock.Mock, mock.MagicMock):
            message = kind()
            message.attributes = {}
            with self.handler(message) as handler:
                message.change_visibility.assert_called_once_with(VisibilityTimeout=30)
            message.delete.assert_called_once_with()
            self.assertEqual("done", handler.outcome)

    def test_a_message_that_was_deleted_says_nothing_any_more(self):
        message = self.message(expires_in=30.0)
        for _ in range(2):
            with self.handler(message):
                pass
        self.assertEqual([30], message.changes)

    def test_a_fresh_claim_is_extended_as_long_after_the_receive_as_any_other_after_its_extension(self):
        with self.handler(self.message(expires_in=44), 45, 20, 100):
            self.assertAlmostEqual(19 + 1, signal.getitimer(signal.ITIMER_REAL)[0], delta=1.5)

    def test_a_long_claim_from_the_receive_is_brought_down_at_the_alarm(self):
        message = self.message(expires_in=3600)
        with self.handler(message) as handler:
            self.advance(10)
            handler.alarm()
        self.assertEqual([30], message.changes)

    def test_defect_5_an_enter_that_fails_leaves_nothing_armed(self):
        with self.assertRaises(GeneratorExit):
            self.handler(self.message(on_change=lambda: raise_(GeneratorExit()))).__enter__()
        self.check_signals()
        with mock.patch("signal.setitimer", side_effect=[OSError("no timer"), mock.DEFAULT, mock.DEFAULT]):
            with self.assertRaises(OSError):
                self.handler().__enter__()
        self.check_signals()

    def test_a_first_extension_that_fails_is_a_failed_extension_like_any_other(self):
        for error in (*NO_ANSWERS, client_error("RequestThrottled")):
            with self.subTest(error=error):
                with self.handler(self.message(on_change=Answers(error, None))) as handler:
                    self.assertEqual([(error, CONTEXT)], handler.notified)
                    handler.alarm()
                self.assertEqual(([30, 30], 1), (handler._message.changes, handler._message.deletes))
                self.assertEqual("done", handler.outcome)

    def test_outside_the_main_thread_it_says_what_to_do_and_sends_nothing(self):
        message, errors = self.message(), []

        def enter():
            try:
                self.handler(message).__enter__()
            except UnsupportedContext as error:
                errors.append(error)

        thread = threading.Thread(target=enter, name="side-thread")
        thread.start()
        thread.join(NEVER)
        self.assertIn("main thread", str(errors[0]))
        self.assertIn("side-thread", str(errors[0]))
        self.assertIn("ProcessMessageHandler", str(errors[0]))
        self.assertEqual([], message.changes)

    def test_without_sigalrm_it_says_what_to_do_and_sends_nothing(self):
        message = self.message()
        fake = mock.Mock(spec=[])
        with mock.patch("sqstaskmaster._signals.alarm.signal", fake), self.assertRaises(UnsupportedContext) as caught:
            self.handler(message).__enter__()
        self.assertIn("Linux or macOS", str(caught.exception))
        self.assertEqual([], message.changes)

    def test_a_handler_can_be_used_again(self):
        handler = self.handler()
        with handler:
            raise ValueError
        self.assertEqual("failed", handler.outcome)
        self.advance(1000)
        with handler:
            self.assertIsNone(handler.outcome)
            handler.alarm()
        self.assertEqual(("done", [30, 30, 30]), (handler.outcome, handler._message.changes))


class VerdictTest(HandlerTestCase):
    def test_a_block_that_ends_normally_deletes_the_message(self):
        with self.handler() as handler:
            handler.run()
        self.assertEqual(1, handler._message.deletes)
        self.assertIs(Outcome.DONE, handler.outcome)
        self.assertEqual("done", handler.outcome)
        self.assertEqual("done", str(handler.outcome))

    def test_an_exception_is_notified_logged_and_swallowed_and_the_message_stays(self):
        error = ValueError("broken")
        with self.assertLogs("sqstaskmaster", logging.ERROR) as logs:
            with self.handler() as handler:
                raise error
        self.assertEqual([(error, CONTEXT)], handler.notified)
        self.assertEqual((0, [30]), (handler._message.deletes, handler._message.changes))
        self.assertEqual("failed", handler.outcome)
        (record,) = logs.records
        self.assertEqual(("Failed for message: %s", (handler._message,)), (record.msg, record.args))
        self.assertIs(error, record.exc_info[1])
        self.assertIn("raise error", logs.output[0])

    def test_an_interruption_gives_the_claim_back_at_once_is_reported_and_propagates(self):
        for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
            with self.subTest(kind=kind):
                handler = self.handler()
                with mock.patch.object(handler, "notify") as notify, self.assertRaises(kind) as caught:
                    notify.side_effect = lambda *args, **kwargs: self.assertEqual(0, handler._message.changes[-1])
                    with self.assertLogs("sqstaskmaster", logging.ERROR) as logs, handler:
                        raise kind
                notify.assert_called_once_with(caught.exception, context=CONTEXT)
                self.assertEqual(["Failed for message: %s"], [record.msg for record in logs.records])
                self.assertEqual(([30, 0], 0), (handler._message.changes, handler._message.deletes))
                self.assertEqual("interrupted", handler.outcome)

    def test_a_claim_that_cannot_be_given_back_is_told_and_the_interruption_propagates(self):
        error = NO_ANSWERS[0]
        handler = self.handler(self.message(on_change=Answers(None, error)))
        with self.assertRaises(KeyboardInterrupt), handler:
            raise KeyboardInterrupt
        self.assertEqual(error, handler.notified[0][0])

    def test_a_lost_claim_is_not_given_back_since_another_may_be_running_it(self):
        handler = self.handler(self.message(on_change=Answers(LOST)))
        with self.assertRaises(KeyboardInterrupt), handler:
            raise KeyboardInterrupt
        self.assertEqual([30], handler._message.changes)

    def test_defect_10_a_notify_that_raises_is_logged_and_takes_nothing_down(self):
        class Grumpy(Handler):
            def notify(self, exception, context=None):
                raise RuntimeError("the error service is down")

        message = self.message(on_change=Answers(NO_ANSWERS[0], LOST), on_delete=lambda: client_error("AccessDenied"))
        with self.assertLogs("sqstaskmaster", logging.ERROR) as logs:
            with self.handler(message, kind=Grumpy) as handler:
                handler.alarm()
            self.assertEqual("done", handler.outcome)
            with self.handler(kind=Grumpy) as handler:
                raise ValueError("the real error")
        self.assertEqual("failed", handler.outcome)
        self.assertIn("the real error", "".join(logs.output))
        self.assertEqual(4, sum("notify failed" in line for line in logs.output))

    def test_defect_10_attributes_of_none_break_nothing(self):
        for error in (None, ValueError("x")):
            with self.handler(self.message(attributes=None, on_change=Answers(NO_ANSWERS[0]))) as handler:
                if error:
                    raise error
            self.assertEqual("failed" if error else "done", handler.outcome)
            self.assertEqual({"body": BODY}, handler.notified[-1][1])

    def test_attributes_of_another_make_break_nothing(self):
        for sent in ("yesterday", object(), "", 5):
            with self.handler(self.message(attributes={"SentTimestamp": sent})) as handler:
                pass
            self.assertEqual("done", handler.outcome)

    def test_a_task_that_ends_itself_by_an_own_time_out_has_failed_not_timed_out(self):
        with self.handler() as handler:
            raise TimeoutError("of the task's own")
        self.assertEqual("failed", handler.outcome)


LOST = client_error("MessageNotInflight")


class DecisionTest(HandlerTestCase):
    def test_an_alarm_extends_the_claim_and_arms_the_next(self):
        with self.handler() as handler:
            self.advance(10)
            handler.alarm()
            self.assertEqual([30, 30], handler._message.changes)
            self.assertAlmostEqual(10, handler.armed(), delta=1)
            self.advance(86)
            handler.alarm()
            self.assertAlmostEqual(4, handler.armed(), delta=1)

    def test_at_the_hard_timeout_the_task_is_stopped_in_the_classic_words(self):
        with self.handler(None, 300, 10, 100) as handler:
            self.advance(99.9)
            handler.alarm()
            self.advance(0.1)
            with self.assertRaises(TimeoutError) as caught:
                handler.alarm()
            raise caught.exception
        self.assertEqual("Hit Hard Timeout for message handler", str(caught.exception))
        self.assertIsInstance(caught.exception, (HardTimeout, SQSTaskMasterError))
        self.assertEqual(("timed out", 0), (handler.outcome, handler._message.deletes))
        self.assertEqual([(caught.exception, CONTEXT)], handler.notified)

    def test_run_time_is_counted_from_start_time_by_the_clock_given(self):
        handler = self.handler()
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)  # it was not entered, and nothing else disarms it
        handler._start_time = self.clock.now - 100
        self.assertEqual(100, handler._run_time())
        for frame in (None, "anything"):
            with self.assertRaises(TimeoutError):
                handler._handle_alarm(signal.SIGALRM, frame)

    def test_defect_11_a_stuck_task_is_stopped_with_a_text_that_is_whole(self):
        with self.handler(None, 30, 2.5, 99.5) as handler:
            self.advance(2.5)
            handler.makes_progress = False
            with self.assertRaises(RuntimeError) as caught:
                handler.alarm()
            raise caught.exception
        self.assertEqual(f"Handler is stuck on {handler._message} after 2.5 seconds", str(caught.exception))
        self.assertIsInstance(caught.exception, HandlerStuck)
        self.assertEqual(("stuck", 0), (handler.outcome, handler._message.deletes))

    def test_past_the_limit_the_task_is_not_asked_whether_it_runs(self):
        with self.handler() as handler:
            handler.makes_progress = False
            self.advance(100)
            with self.assertRaises(HardTimeout):
                handler.alarm()
        self.assertEqual("timed out", handler.outcome)

    def test_defect_8_a_body_that_ends_after_its_limit_has_failed(self):
        with self.handler() as handler:
            self.advance(100)
            with contextlib.suppress(Exception):
                handler.alarm()
        self.assertEqual(("timed out", 0), (handler.outcome, handler._message.deletes))
        self.assertIsInstance(handler.notified[-1][0], HardTimeout)

    def test_a_body_that_swallowed_that_it_is_stuck_has_failed(self):
        with self.handler() as handler:
            handler.makes_progress = False
            with contextlib.suppress(Exception):
                handler.alarm()
            handler.makes_progress = True
            handler.alarm()
        self.assertEqual(("stuck", 0), (handler.outcome, handler._message.deletes))

    def test_the_task_that_turns_its_stop_into_another_error_has_timed_out(self):
        error = ValueError("cleaned up badly")
        with self.handler(None, 300, 10, 100) as handler:
            self.advance(100)
            try:
                handler.alarm()
            except HardTimeout:
                raise error from None
        self.assertEqual("timed out", handler.outcome)
        self.assertIs(error, handler.notified[0][0])

    def test_defect_8_the_limit_is_raised_again_every_alarm_and_the_claim_lasts_meanwhile(self):
        with self.handler() as handler:
            self.advance(100)
            for _ in range(20):
                with self.assertRaises(HardTimeout):
                    handler.alarm()
                self.assertAlmostEqual(10, handler.armed(), delta=1)
                self.assertTrue(handler._block.extensions.wait(5), "it is answered")
                self.assertGreaterEqual(handler._block.claim.left(self.clock.now), 0)
                self.advance(10)
        self.assertEqual("timed out", handler.outcome)

    def test_a_stuck_task_is_told_again_every_alarm_and_stopped_at_its_limit(self):
        with self.handler() as handler:
            handler.makes_progress = False
            for _ in range(9):
                self.advance(10)
                with self.assertRaises(HandlerStuck):
                    handler.alarm()
                self.assertAlmostEqual(10, handler.armed(), delta=1)
            self.advance(6)
            with self.assertRaises(HandlerStuck):
                handler.alarm()
            self.assertAlmostEqual(4, handler.armed(), delta=1)
            self.advance(4)
            with self.assertRaises(HardTimeout):
                handler.alarm()

    def test_a_running_that_raises_ends_neither_heartbeat_nor_limit(self):
        with self.handler() as handler:
            self.advance(10)
            with mock.patch.object(handler, "running", side_effect=ZeroDivisionError):
                with self.assertRaises(ZeroDivisionError):
                    handler.alarm()
            self.assertAlmostEqual(10, handler.armed(), delta=1)
            handler.alarm()
            self.assertEqual([30, 30], handler._message.changes)

    def test_running_and_the_extension_are_asked_with_the_limit_armed(self):
        armed = []
        message = self.message(on_change=lambda: armed.append(signal.getitimer(signal.ITIMER_REAL)[0]))
        with self.handler(message) as handler:
            self.advance(10)
            with mock.patch.object(handler, "running", lambda: armed.append(handler.armed()) or True):
                handler.alarm()
        self.assertEqual(0, armed[0])  # the first extension, before anything is armed
        for seconds in armed[1:]:
            self.assertAlmostEqual(90, seconds, delta=5)


class ExtensionTest(HandlerTestCase):
    def test_defects_1_and_2_a_failed_extension_never_ends_the_task_and_is_told_and_tried_again_soon(self):
        for error in (*NO_ANSWERS, client_error("RequestThrottled"), client_error("AccessDenied")):
            with self.subTest(error=error), self.assertLogs("sqstaskmaster", logging.WARNING) as logs:
                with self.handler(self.message(on_change=Answers(None, error, error, error, None))) as handler:
                    self.advance(10)
                    for _ in range(3):
                        handler.alarm()
                        armed = handler.armed()
                        self.assertTrue(0 < armed <= handler._block.claim.left(self.clock.now) / 4 + 0.01, armed)
                        self.advance(armed)
                    handler.alarm()
                    self.assertAlmostEqual(10, handler.armed(), delta=1)
                self.assertEqual("done", handler.outcome)
                self.assertEqual([(error, CONTEXT)] * 3, handler.notified)
                self.assertEqual(["WARNING"] * 3, [record.levelname for record in logs.records])
                self.assertEqual([], handler.lost)

    def test_the_tries_to_save_a_claim_come_sooner_and_sooner_but_no_storm(self):
        with self.handler(self.message(on_change=Answers(None, NO_ANSWERS[0]))) as handler:
            self.advance(10)
            tries = 0
            while handler._block.claim.left(self.clock.now):
                handler.alarm()
                tries += 1
                self.advance(max(handler.armed(), 0.45))
            self.assertTrue(5 <= tries <= 20, tries)

    def test_while_extensions_fail_the_limit_holds(self):
        with self.handler(self.message(on_change=Answers(NO_ANSWERS[0])), 30, 10, 12) as handler:
            self.advance(10)
            handler.alarm()
            self.assertTrue(0 < handler.armed() <= 2, handler.armed())
            self.advance(2)
            handler.alarm()
        self.assertEqual("timed out", handler.outcome)

    def test_whatever_an_extension_raises_is_a_failed_call_and_tried_again(self):
        unreadable = UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "a proxy's page in latin-1")
        for error in (TypeError("no such argument"), unreadable):
            with self.subTest(error=error):
                with self.handler(self.message(on_change=Answers(None, error, None))) as handler:
                    self.advance(10)
                    handler.alarm()
                    self.assertAlmostEqual(5, handler.armed(), delta=1)
                    self.advance(5)
                    handler.alarm()
                self.assertEqual(("done", [(error, CONTEXT)]), (handler.outcome, handler.notified))
                self.assertEqual([30, 30, 30], handler._message.changes)

    def test_an_extension_without_an_answer_is_told_and_another_tried(self):
        answer = threading.Event()
        self.addCleanup(answer.set)
        calls = iter([lambda: None, lambda: answer.wait(NEVER) and None, lambda: None])
        message = self.message(on_change=lambda: next(calls)())
        with mock.patch.object(Attempt, "wait_seconds", 0.05):
            with self.handler(message) as handler:
                self.advance(10)
                handler.alarm()
                self.assertTrue(0 < handler.armed() <= 5, handler.armed())
                self.assertEqual([], handler.notified)
                handler.alarm()
                wait_until(lambda: handler.notified, "the missing answer is told")
        self.assertIsInstance(handler.notified[0][0], NoAnswer)
        self.assertEqual([30, 30, 30], message.changes)

    def test_a_late_answer_that_the_claim_is_gone_is_heard(self):
        answer = threading.Event()
        calls = iter([lambda: None, lambda: answer.wait(NEVER) and LOST])
        with mock.patch.object(Attempt, "wait_seconds", 0.05):
            with self.handler(self.message(on_change=lambda: next(calls)())) as handler:
                self.advance(10)
                handler.alarm()
                self.assertEqual([], handler.lost)
                answer.set()
                self.assertTrue(handler._block.extensions.wait(NEVER), "the late answer comes")
                handler.alarm()
                self.assertEqual([LOST], handler.lost)
                self.assertEqual([30, 30], handler._message.changes)

    def test_the_protected_extend_timeout_asks_for_what_it_is_given(self):
        handler = self.handler()
        handler._extend_timeout(20)
        self.assertEqual([20], handler._message.changes)


class WaitTest(unittest.TestCase):
    def test_a_call_is_waited_for_well_within_the_alarm_and_the_claim_so_that_the_task_has_its_time(self):
        for sqs, alarm, most in ((30, 10, 1), (30, 0.4, 0.1), (12, 10.9, 0.4)):
            self.assertLessEqual(Handler(FakeMessage(), sqs, alarm, 60)._attempt.wait_seconds, most)


class ClaimLostTest(HandlerTestCase):
    def test_a_lost_claim_is_told_once_and_the_task_goes_on(self):
        for code in LOST_CODES:
            error = client_error(code, "The receipt handle has expired")
            with self.subTest(code=code), self.assertLogs("sqstaskmaster", logging.ERROR) as logs:
                with self.handler(self.message(on_change=Answers(None, error))) as handler:
                    for _ in range(3):
                        self.advance(10)
                        handler.alarm()
                        self.assertAlmostEqual(10, handler.armed(), delta=1)
                self.assertEqual([error], handler.lost)
                self.assertEqual([(error, CONTEXT)], handler.notified)
                self.assertEqual(["ERROR"], [record.levelname for record in logs.records])
                self.assertEqual("claim_lost", logs.records[0].action)
                self.assertEqual(([30, 30], 1), (handler._message.changes, handler._message.deletes))
                self.assertEqual("done", handler.outcome)

    def test_a_lost_claim_does_not_end_the_limit(self):
        with self.handler(self.message(on_change=Answers(LOST))) as handler:
            self.advance(100)
            handler.alarm()
        self.assertEqual("timed out", handler.outcome)

    def test_an_exception_raised_in_claim_lost_stops_the_task(self):
        class Strict(Handler):
            def claim_lost(self, exception):
                raise InterruptedError("not ours any more")

        with self.handler(self.message(on_change=Answers(None, LOST)), kind=Strict) as handler:
            self.advance(10)
            with self.assertRaises(InterruptedError) as caught:
                handler.alarm()
            self.assertAlmostEqual(10, handler.armed(), delta=1)
            raise caught.exception
        self.assertEqual(("failed", 0), (handler.outcome, handler._message.deletes))

    def test_raised_while_entering_it_stops_the_task_inside_its_block(self):
        class Strict(Handler):
            def claim_lost(self, exception):
                raise InterruptedError("not ours any more")

        with self.handler(self.message(on_change=Answers(LOST)), kind=Strict) as handler:
            spin(lambda: False)
        self.assertEqual(("failed", 0), (handler.outcome, handler._message.deletes))
        self.assertIsInstance(handler.notified[-1][0], InterruptedError)

    def test_raised_while_entering_it_counts_though_the_block_ends_before_the_first_alarm(self):
        class Strict(Handler):
            def claim_lost(self, exception):
                raise InterruptedError("not ours any more")

        handler = self.handler(self.message(on_change=Answers(LOST)), kind=Strict)
        with mock.patch("sqstaskmaster._signals.alarm._SOONEST_SECONDS", NEVER), handler:
            pass
        self.assertEqual(("failed", 0), (handler.outcome, handler._message.deletes))

    def test_raised_while_entering_it_waits_until_an_enter_of_the_subclass_is_over(self):
        alarms = []

        class Strict(Handler):
            def claim_lost(self, exception):
                raise InterruptedError("not ours any more")

            def __enter__(self):
                super().__enter__()
                spin(lambda: len(alarms) >= 2)
                return self

            def _handle_alarm(self, signum, frame):
                alarms.append(frame)
                super()._handle_alarm(signum, frame)

        with self.handler(self.message(on_change=Answers(LOST)), kind=Strict) as handler:
            spin(lambda: False)
        self.assertEqual("failed", handler.outcome)

    def test_a_claim_lost_after_the_stop_is_told_too(self):
        with self.handler(self.message(on_change=Answers(None, LOST)), 300, 290, 100) as handler:
            self.advance(100)
            with contextlib.suppress(HardTimeout):
                handler.alarm()
            self.assertTrue(handler._block.extensions.wait(5), "the extension is answered")
            with contextlib.suppress(HardTimeout):
                handler.alarm()
        self.assertEqual([LOST], handler.lost)
        self.assertEqual("timed out", handler.outcome)


class LapseTest(HandlerTestCase):
    """SQS answers an extension of a claim that has lapsed as if nothing had happened: our own clock decides."""

    def test_a_receive_whose_answer_came_late_is_extended_on_entering(self):
        message = self.message()
        note.leave(message, note.Receipt(self.clock.now - 12, self.clock.now, 15, "T"))
        with self.handler(message, 15, 5, 100):
            self.assertEqual([15], message.changes)

    def test_a_worker_that_was_stopped_for_longer_than_its_claim_finds_it_lost_whatever_sqs_says(self):
        with self.assertLogs("sqstaskmaster", logging.ERROR) as logs, self.handler() as handler:
            self.advance(31)
            handler.alarm()
            handler.alarm()
        (error,) = handler.lost
        self.assertIsInstance(error, ClaimLapsed)
        self.assertEqual(["claim_lost"], [record.action for record in logs.records])
        self.assertEqual(([30], 1, "done"), (handler._message.changes, handler._message.deletes, handler.outcome))

    def test_one_that_was_stopped_for_a_little_less_saves_it(self):
        with self.handler() as handler:
            self.advance(29)
            handler.alarm()
        self.assertEqual(([], [30, 30]), (handler.lost, handler._message.changes))

    def test_extensions_cut_off_for_longer_than_the_claim_lose_it(self):
        with self.handler(self.message(on_change=Answers(None, NO_ANSWERS[0]))) as handler:
            while not handler.lost:
                self.assertLess(handler._run_time(), 30.1)
                self.advance(max(handler.armed(), 0.01) + 0.01)
                handler.alarm()
            self.assertTrue(30 < handler._run_time() < 31, handler._run_time())

    def test_a_failure_after_a_lapse_neither_gives_back_nor_delays(self):
        class Retried(Handler):
            def retry_delay(self, exception, receive_count):
                return 5

        for error, outcome in ((ValueError(), "failed"), (KeyboardInterrupt(), "interrupted")):
            with self.subTest(outcome), contextlib.suppress(KeyboardInterrupt):
                with self.handler(kind=Retried) as handler:
                    self.advance(31)
                    raise error
            self.assertEqual((outcome, [30]), (handler.outcome, handler._message.changes))
            self.assertIsInstance(handler.lost[0], ClaimLapsed)

    def test_a_claim_that_runs_out_while_retry_delay_is_asked_is_not_given_back(self):
        case = self

        class Slow(Handler):
            def retry_delay(self, exception, receive_count):
                case.advance(31)
                return 0

        with self.handler(kind=Slow) as handler:
            raise ValueError
        self.assertEqual(("failed", [30]), (handler.outcome, handler._message.changes))

    def test_an_answer_that_the_claim_is_gone_which_comes_with_the_verdict_counts(self):
        answer = threading.Event()
        calls = iter([lambda: None, lambda: answer.wait(NEVER) and LOST])
        message = self.message(on_change=lambda: next(calls)())

        def answer_first(extensions, seconds):
            answer.set()
            return wait(extensions, seconds)

        wait = Extensions.wait
        answers = mock.patch.object(Extensions, "wait", answer_first)
        with answers, mock.patch.object(Attempt, "wait_seconds", 0.05):
            with self.assertRaises(KeyboardInterrupt), self.handler(message) as handler:
                self.advance(10)
                handler.alarm()
                raise KeyboardInterrupt
        self.assertEqual([30, 30], message.changes)

    def test_finished_work_is_deleted_after_a_lapse_too(self):
        with self.handler() as handler:
            self.advance(31)
        self.assertEqual(("done", 1, 1), (handler.outcome, handler._message.deletes, len(handler.lost)))

    def test_what_claim_lost_raises_when_the_task_has_ended_is_told_and_goes_no_further(self):
        class Strict(Handler):
            def claim_lost(self, exception):
                raise InterruptedError("not ours any more")

        with self.handler(kind=Strict) as handler:
            self.advance(31)
        self.assertEqual(("done", 1), (handler.outcome, handler._message.deletes))
        self.assertIsInstance(handler.notified[0][0], InterruptedError)

    def test_a_block_that_is_entered_on_a_lapsed_claim_changes_no_visibility_and_deletes_finished_work(self):
        message = self.message(expires_in=-2.5, received_ago=32.5)
        with self.assertLogs("sqstaskmaster", logging.WARNING) as logs, self.handler(message) as handler:
            self.advance(10)
            handler.alarm()
        self.assertEqual(([], 1, "done"), (message.changes, message.deletes, handler.outcome))
        self.assertEqual([ClaimLapsed], [type(error) for error in handler.lost])
        self.assertEqual(["claim_lapsed", "claim_lost"], [record.action for record in logs.records])
        self.assertRegex(logs.records[0].getMessage(), r"2\.5 s before .* task_generator\(sqs_timeout=")

    def test_a_block_on_a_lapsed_claim_that_is_interrupted_gives_nothing_back(self):
        message = self.message(expires_in=-2.5, received_ago=32.5)
        with self.assertRaises(KeyboardInterrupt), self.handler(message):
            raise KeyboardInterrupt
        self.assertEqual(([], 0), (message.changes, message.deletes))

    def test_a_block_on_a_lapsed_claim_ends_where_claim_lost_raises(self):
        class Strict(Handler):
            def claim_lost(self, exception):
                raise InterruptedError("not ours any more")

        message = self.message(expires_in=-2.5, received_ago=32.5)
        with self.handler(message, kind=Strict) as handler:
            handler.alarm()
        self.assertEqual(([], 0, "failed"), (message.changes, message.deletes, handler.outcome))

    def test_time_in_which_the_machine_was_suspended_counts_for_the_claim_and_not_for_the_limit(self):
        suspended = 0.0
        with mock.patch("sqstaskmaster.message_handler.claim_clock", lambda: self.clock.now + suspended):
            handler = Handler(FakeMessage())
            with mock.patch("time.monotonic", self.clock):
                handler._renew(None).begin()
                suspended = 3600.0
                self.assertEqual(100, handler._block.seconds_to_limit())
                handler._extend_timeout(30)
        self.assertEqual([3570.0], [error.seconds for error in handler.lost])


async def coroutine(handler):
    handler.ran.append("coroutine")


def generator(handler):
    yield handler.ran.append("generator")
    yield


async def async_generator(handler):
    yield handler.ran.append("async_generator")


class NothingHasRunTest(HandlerTestCase):
    """A classic block whose `run` gives what has yet to be run."""

    KINDS = (coroutine, generator, async_generator)

    def of(self, function):
        class Async(Handler):
            ran = []
            run = function

        handler = self.handler(kind=Async)
        handler.ran = []
        return handler

    def test_a_run_that_gave_what_was_never_begun_is_a_failure_that_says_so_and_nothing_is_deleted(self):
        for function in self.KINDS:
            with self.subTest(function.__name__), warnings.catch_warnings():
                warnings.simplefilter("error")
                with self.assertLogs("sqstaskmaster", "ERROR"), self.of(function) as handler:
                    handler.run()
                self.assertEqual(("failed", 0, []), (handler.outcome, handler._message.deletes, handler.ran))
                [(error, context)] = handler.notified
                self.assertIsInstance(error, NothingHasRun)
                self.assertRegex(str(error), f"returned a {function.__name__}.*has done nothing yet".replace("_", "_?"))
                self.assertEqual(CONTEXT, context)

    def test_one_that_is_awaited_or_iterated_in_the_block_is_a_task_like_any_other(self):
        async def iterate(values):
            return [value async for value in values]

        ways = asyncio.run, list, lambda values: asyncio.run(iterate(values))
        for function, way in (*zip(self.KINDS, ways), (generator, next)):
            with self.subTest(function.__name__):
                with self.of(function) as handler:
                    way(handler.run())
                self.assertEqual(
                    ("done", 1, [function.__name__]), (handler.outcome, handler._message.deletes, handler.ran)
                )

    def test_a_block_that_was_never_left_does_not_spoil_the_next(self):
        class Breaks(Handler):
            run = coroutine
            ran = []
            broken = True

            def __enter__(self):
                super().__enter__()
                if self.broken:
                    self._block.alarm.give_back()
                    current.end(current.current_task())
                    raise KeyError
                return self

        handler = self.handler(kind=Breaks)
        with self.assertRaises(KeyError), handler:
            pass
        handler.broken = False
        with handler:
            handler.run()
        self.assertEqual("failed", handler.outcome)

    def test_a_run_that_somebody_put_on_the_handler_or_its_class_is_called_and_asked_as_ever(self):
        own = mock.Mock(return_value=5)
        handler = self.handler()
        handler.run = own
        with handler:
            self.assertIs(own, handler.run)
            self.assertEqual(5, handler.run())
        self.assertIs(own, handler.run)
        with self.handler() as handler, mock.patch.object(Handler, "run", return_value=6):
            self.assertEqual(6, handler.run(1, two=2))
            handler.run.assert_called_once_with(1, two=2)
        self.assertNotIn("run", vars(handler))


class TwelveHoursTest(HandlerTestCase):
    def run_to_the_end(self, handler):
        """The seconds after entering at which the task was stopped."""
        entered = self.clock.now
        while True:
            self.advance(min(handler.alarm_timeout, max(handler._block.seconds_to_limit(), 0)))
            try:
                handler.alarm()
            except HardTimeout:
                return self.clock.now - entered

    def test_defect_12_the_last_extension_is_cut_to_what_is_left_of_the_12_hours(self):
        message = self.message(expires_in=300)
        end = self.clock.now + TWELVE_HOURS

        def on_change():
            if self.clock.now + message.changes[-1] > end:
                return BEYOND_TOTAL

        message.on_change = on_change
        with self.handler(message, 300, 70, TWELVE_HOURS) as handler:
            stopped = self.run_to_the_end(handler)
        self.assertEqual([], handler.notified[:-1])
        self.assertEqual("timed out", handler.outcome)
        self.assertEqual(TWELVE_HOURS - 2, stopped)
        self.assertEqual({300}, set(message.changes[:-1]))
        self.assertEqual(290, message.changes[-1])

    def test_the_12_hours_are_counted_from_the_receive_not_from_the_block(self):
        message = self.message(expires_in=0, received_ago=TWELVE_HOURS - 100.5)
        with self.handler(message, 60, 15, 3600) as handler:
            self.assertEqual([60], message.changes)
            self.assertEqual(98.5, self.run_to_the_end(handler))
        self.assertEqual([60, 60, 60, 55], message.changes)

    def test_the_hard_timeout_holds_where_it_is_earlier(self):
        message = self.message(expires_in=0, received_ago=TWELVE_HOURS - 100)
        with self.handler(message, 60, 20, 50) as handler:
            self.assertEqual(50, self.run_to_the_end(handler))

    def test_a_visibility_timeout_of_12_hours_is_cut_at_once(self):
        message = self.message(expires_in=10, received_ago=0.5)
        with self.handler(message, TWELVE_HOURS, 20, 3600):
            self.assertEqual([TWELVE_HOURS - 1], message.changes)

    def test_a_refusal_because_of_the_12_hours_is_no_lost_claim_and_not_asked_again(self):
        message = self.message(on_change=Answers(None, BEYOND_TOTAL))
        with self.handler(message) as handler:
            self.advance(10)
            handler.alarm()
            self.assertEqual([], handler.lost)
            self.assertEqual([(BEYOND_TOTAL, CONTEXT)], handler.notified)
            self.advance(10)
            handler.alarm()
            self.assertEqual([30, 30], message.changes)
            self.assertAlmostEqual(8, handler.armed(), delta=1)  # the claim held now is all there will be
            self.advance(8)
            handler.alarm()
        self.assertEqual("timed out", handler.outcome)


answers = st.sampled_from([None, None, None, NO_ANSWERS[0], UnicodeDecodeError("utf-8", b"", 0, 1, ""), LOST])
steps = st.tuples(st.floats(0, 45), answers, st.sampled_from([True] * 9 + [False]))


class VerdictWalkTest(HandlerTestCase):
    @settings(deadline=None, max_examples=150)
    @given(st.lists(steps, max_size=12), st.sampled_from([None, ValueError, KeyboardInterrupt]), answers)
    def test_whatever_happens_there_is_one_verdict_and_only_finished_work_is_deleted(self, walk, ending, at_the_end):
        answer, stopped = [None], []
        message = self.message(on_change=lambda: answer[0], on_delete=lambda: at_the_end)
        Handler.failed_checks.clear()
        with self.assertLogs("sqstaskmaster", logging.INFO) as logs:
            with contextlib.suppress(KeyboardInterrupt), self.handler(message) as handler:
                for seconds, answer[0], handler.makes_progress in walk:
                    self.advance(seconds)
                    try:
                        handler.alarm()
                    except (HardTimeout, HandlerStuck) as error:
                        stopped.append(error)
                    if handler._block.claim.lost is None:
                        # A claim that lives is extended before it can end, or it is told that it is lost.
                        self.assertLessEqual(handler._block.claim.due(self.clock.now), handler._block.claim.latest_end)
                handler._block.extensions.wait(NEVER)
                handler._block.collect()
                lost = handler._block.claim.lost
                before = len(message.changes)
                if ending:
                    raise ending()
        self.assertEqual(handler.outcome == "done", not (stopped or ending))
        self.assertEqual(handler.outcome == "done", message.deletes > 0)
        self.assertEqual(["finished"], [a for a in self.actions(logs, handler) if a == "finished"])
        self.assertLessEqual(len(handler.lost), 1)
        returned = message.changes[before:]
        self.assertEqual({0} if ending is KeyboardInterrupt and not lost else set(), set(returned))
        if answer[0] is not NO_ANSWERS[0]:  # which says that nothing has happened
            self.assertLessEqual(len(returned), 1)


class DeleteTest(HandlerTestCase):
    def test_defect_7_a_delete_is_tried_again_until_it_goes_through(self):
        for error in (*NO_ANSWERS, client_error("InternalError")):
            with self.subTest(error=error), self.assertLogs("sqstaskmaster", logging.WARNING) as logs:
                with self.handler(self.message(on_delete=Answers(error, error, error, None))) as handler:
                    pass
                self.assertEqual((4, "done", []), (handler._message.deletes, handler.outcome, handler.notified))
                self.assertEqual({"WARNING"}, {record.levelname for record in logs.records})

    def test_defect_7_it_is_given_up_and_reported_when_the_claim_ends_and_the_loop_lives(self):
        entered = self.clock.now
        error = NO_ANSWERS[0]
        with self.assertLogs("sqstaskmaster", logging.ERROR) as logs:
            with self.handler(self.message(on_delete=Answers(error))) as handler:
                pass
        self.assertTrue(20 < self.clock.now - entered <= 30, self.clock.now - entered)
        self.assertEqual("done", handler.outcome)
        self.assertEqual([(error, CONTEXT)], handler.notified)
        self.assertEqual("delete_failed", logs.records[-1].action)

    def test_a_claim_that_is_gone_is_no_reason_to_try_again(self):
        with self.handler(self.message(on_delete=Answers(client_error("ReceiptHandleIsInvalid")))) as handler:
            pass
        self.assertEqual((1, 1), (handler._message.deletes, len(handler.notified)))

    def test_a_delete_whose_answer_was_lost_may_find_the_message_gone(self):
        gone = client_error("InvalidParameterValue")
        with self.handler(self.message(on_delete=Answers(NO_ANSWERS[1], gone))) as handler:
            pass
        self.assertEqual((2, []), (handler._message.deletes, handler.notified))

    def test_whatever_a_delete_raises_is_a_failed_call_and_tried_again(self):
        unreadable = UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "a proxy's page in latin-1")
        with self.handler(self.message(on_delete=Answers(unreadable, unreadable, None))) as handler:
            pass
        self.assertEqual((3, []), (handler._message.deletes, handler.notified))

    def test_a_mistake_in_the_message_object_is_reported_once_and_the_loop_lives(self):
        error = ZeroDivisionError("in the delete of the user's own message object")
        with self.handler(self.message(on_delete=Answers(error))) as handler:
            pass
        self.assertEqual([(error, CONTEXT)], handler.notified)
        self.assertGreater(handler._message.deletes, 1)

    def test_a_delete_of_a_longer_task_that_does_not_answer_is_tried_again(self):
        answer = threading.Event()
        self.addCleanup(answer.set)
        calls = iter([lambda: answer.wait(NEVER) and None, lambda: None])
        with mock.patch("sqstaskmaster._claim.deletion.LONGEST_WAIT_SECONDS", 0.05):
            with self.handler(self.message(on_delete=lambda: next(calls)())) as handler:
                self.advance(handler.alarm_timeout)  # a task of some length
        self.assertEqual((2, []), (handler._message.deletes, handler.notified))


class LogTest(HandlerTestCase):
    def test_defect_11_no_body_is_logged_above_debug_whatever_happens(self):
        errors = Answers(None, NO_ANSWERS[0], LOST)
        with self.assertLogs("sqstaskmaster", logging.DEBUG) as logs:
            with self.handler(self.message(on_change=errors, on_delete=Answers(NO_ANSWERS[0], LOST))) as handler:
                for _ in range(3):
                    self.advance(10)
                    handler.alarm()
            with self.handler() as handler:
                raise ValueError("x")
            with self.handler() as handler:
                self.advance(100)
                handler.alarm()
        self.assertGreater(len(logs.output), 6)
        for record, line in zip(logs.records, logs.output):
            if record.levelno > logging.DEBUG:
                self.assertNotIn("body-secret", line + repr(record.__dict__))

    def test_ticks_are_silent_at_info_and_a_finished_task_is_one_line_with_its_facts(self):
        message = self.message(expires_in=0, task="Train")
        with self.assertLogs("sqstaskmaster", logging.INFO) as logs:
            with self.handler(message, 30, 10.5, 99.5) as handler:
                self.advance(10.5)
                handler.alarm()
        (record,) = logs.records
        line = rf"^Task Train done: message {message.message_id}, receive 3, queued \d+\.\d{{3}} s, ran 10\.500 s$"
        self.assertRegex(record.getMessage(), line)
        facts = {name: getattr(record, name) for name in ("action", "task", "message_id", "receive_count", "outcome")}
        expected = {"action": "finished", "task": "Train", "message_id": message.message_id, "receive_count": 3}
        self.assertEqual({**expected, "outcome": "done"}, facts)
        self.assertEqual(10.5, record.elapsed)
        self.assertAlmostEqual(time.time() - 10.5 - 1700000000, record.queued, delta=NEVER)

    def test_each_extension_is_a_debug_line(self):
        message = self.message()
        with self.assertLogs("sqstaskmaster", logging.DEBUG) as logs, self.handler(message):
            pass
        self.assertIn(("DEBUG", "extended", (30, message)), [(r.levelname, r.action, r.args) for r in logs.records])


class SignalledHandler(Handler):
    """Remembers where its alarms landed."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.landed = []
        self.depth = self.deepest = 0

    def _handle_alarm(self, signum, frame):
        self.landed.append(frame)
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        try:
            super()._handle_alarm(signum, frame)
        finally:
            self.depth -= 1

    def landed_in(self):
        return [frame.f_code.co_name for frame in self.landed]


class AlarmedInItsExit(SignalledHandler):
    def __exit__(self, *details):
        signal.raise_signal(signal.SIGALRM)
        return super().__exit__(*details)


class RealAlarmTest(SignalTestCase):
    """With real signals and the real clock. Margins are wide: they tell seconds from what broken code would take."""

    def test_the_claim_is_extended_while_python_code_runs(self):
        message = FakeMessage()
        with Handler(message, 2, 0.05, 60) as handler:
            spin(lambda: len(message.changes) >= 4)
        self.assertEqual(("done", 1), (handler.outcome, message.deletes))

    def test_defect_3_the_hard_timeout_is_met_on_time_not_at_the_next_alarm(self):
        began, awake = time.monotonic(), awake_seconds()
        with Handler(FakeMessage(), 60, 40, 0.2) as handler:
            spin(lambda: False)
        self.assertEqual("timed out", handler.outcome)
        self.assertLessEqual(0.2, time.monotonic() - began)
        self.assertLess(awake_seconds() - awake, 20)

    def test_a_loop_of_the_block_itself_is_stopped_whatever_its_shape(self):
        for name, loop in LOOPS.items():
            with self.subTest(name):
                handler = Handler(FakeMessage(), 60, 40, 0.05)
                with self.assertLogs("sqstaskmaster", logging.ERROR):
                    loop(handler, True, range(10**12))
                self.assertEqual("timed out", handler.outcome)

    def test_defect_4_an_extension_that_blocks_does_not_delay_the_limit(self):
        answer = threading.Event()
        self.addCleanup(answer.set)
        message = FakeMessage(on_change=Answers(None))
        began = awake_seconds()
        with Handler(message, 30, 0.3, 1) as handler:
            message.on_change = lambda: answer.wait(NEVER) and None
            spin(lambda: False)
        self.assertGreater(len(message.changes), 1)
        self.assertEqual("timed out", handler.outcome)
        self.assertLess(awake_seconds() - began, 20)

    def test_defect_4_not_even_where_a_subclass_does_the_waiting(self):
        class Slow(Handler):
            def _extend_timeout(self, seconds):
                if self.armed():
                    spin(lambda: False)

        began = awake_seconds()
        with Slow(FakeMessage(), 30, 0.1, 0.5) as handler:
            spin(lambda: False)
        self.assertEqual("timed out", handler.outcome)
        self.assertLess(awake_seconds() - began, 20)

    def test_while_extensions_block_the_task_goes_on_and_alarms_do_not_pile_up(self):
        answer = threading.Event()
        self.addCleanup(answer.set)
        message = FakeMessage(on_change=lambda: answer.wait(NEVER) and None)
        with SignalledHandler(message, 3, 0.1, 60) as handler:
            steps = []
            for number in range(8):
                spin(lambda: len(handler.landed) >= number)
                steps.append(number)
        self.assertEqual("done", handler.outcome)
        self.assertLessEqual(handler.deepest, 2)

    def test_a_log_handler_whose_lock_the_interrupted_code_holds_does_not_deadlock_the_task(self):
        lock = threading.Lock()  # not re-entrant
        got = []

        class Locking(logging.Handler):
            def emit(self, record):
                got.append(lock.acquire(timeout=NEVER / 4))
                lock.release()

        logger = logging.getLogger("sqstaskmaster.message_handler")
        locking = Locking()
        logger.addHandler(locking)
        self.addCleanup(logger.removeHandler, locking)
        for error in (NO_ANSWERS[0], LOST):
            message = FakeMessage(on_change=Answers(None, error))
            with self.subTest(error=error), Handler(message, 30, 0.1, 60) as handler:
                with lock:
                    spin(lambda: len(message.changes) >= 2)
                    spin(lambda began=time.monotonic(): time.monotonic() > began + 0.2)
            self.assertEqual("done", handler.outcome)
        wait_until(lambda: len(got) >= 4, "two warnings and two finished tasks are logged")
        self.assertNotIn(False, got)

    def test_defect_8_a_swallowed_limit_is_raised_again_and_again(self):
        swallowed = []
        with Handler(FakeMessage(), 30, 0.05, 0.05) as handler:
            while len(swallowed) < 4:
                try:
                    spin(lambda: False)
                except Exception as error:
                    swallowed.append(error)
        self.assertEqual({HardTimeout}, {type(error) for error in swallowed})
        self.assertEqual(("timed out", 0), (handler.outcome, handler._message.deletes))

    def test_defect_13_sigalrm_left_blocked_by_one_task_does_not_disable_the_next_limit(self):
        with self.assertLogs("sqstaskmaster", logging.WARNING) as logs:
            with Handler(FakeMessage()) as handler:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
                signal.pthread_kill(threading.get_ident(), signal.SIGALRM)
        self.assertIn("alarm_taken", self.actions(logs, handler))
        self.assertEqual("done", handler.outcome)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # by code outside any block
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)
        with SignalledHandler(FakeMessage(), 30, 10, 0.1) as handler:
            self.assertEqual([], handler.landed)  # what was pending was not meant for this task
            spin(lambda: False)
        self.assertEqual("timed out", handler.outcome)

    def test_defect_5_a_task_that_takes_sigalrm_for_itself_is_logged(self):
        def takes_handler():
            signal.signal(signal.SIGALRM, signal.SIG_IGN)

        def takes_timer():
            signal.alarm(0)

        def blocks():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})

        for take in (takes_handler, takes_timer, blocks):
            with self.subTest(take=take), self.assertLogs("sqstaskmaster", logging.WARNING) as logs:
                with Handler(FakeMessage()) as handler:
                    take()
                self.assertIn("alarm_taken", self.actions(logs, handler))
                self.assertIn("ProcessMessageHandler", logs.output[0])
                self.assertEqual("done", handler.outcome)

    def test_a_task_that_leaves_sigalrm_alone_is_not_accused(self):
        with self.assertLogs("sqstaskmaster", logging.INFO) as logs:
            with Handler(FakeMessage(), 30, 0.02, 60) as handler:
                spin(lambda began=time.monotonic(): time.monotonic() > began + 0.1)
        self.assertNotIn("alarm_taken", self.actions(logs, handler))


class NestedTest(SignalTestCase):
    def test_defect_5_both_heartbeats_go_on_and_both_are_put_back(self):
        outer_message, inner_message = FakeMessage(), FakeMessage()
        with self.assertLogs("sqstaskmaster", logging.INFO) as logs:
            with Handler(outer_message, 3, 0.05, 60) as outer:
                with Handler(inner_message, 3, 0.08, 60) as inner:
                    spin(lambda: len(outer_message.changes) >= 4 and len(inner_message.changes) >= 4)
                self.assertEqual(outer._handle_alarm, signal.getsignal(signal.SIGALRM))
                before = len(outer_message.changes)
                spin(lambda: len(outer_message.changes) >= before + 3)
        self.assertEqual(("done", "done"), (outer.outcome, inner.outcome))
        for handler in (outer, inner):
            self.assertNotIn("alarm_taken", self.actions(logs, handler))

    def test_the_inner_limit_stops_the_inner_task_only(self):
        with Handler(FakeMessage(), 30, 10, 60) as outer:
            with Handler(FakeMessage(), 30, 10, 0.1) as inner:
                spin(lambda: False)
        self.assertEqual(("done", "timed out"), (outer.outcome, inner.outcome))

    def test_the_outer_limit_stops_both(self):
        with Handler(FakeMessage(), 30, 0.1, 0.1) as outer:
            with Handler(FakeMessage(), 30, 10, 60) as inner:
                spin(lambda: False)
        self.assertEqual(("timed out", "failed"), (outer.outcome, inner.outcome))
        self.assertIsInstance(inner.notified[0][0], HardTimeout)

    def test_the_outer_limit_does_not_cut_off_the_inner_verdict(self):
        outer = SignalledHandler(FakeMessage(), 30, 0.05, 0.05)
        message = FakeMessage(on_delete=lambda: wait_until(lambda: outer.landed, "the outer limit comes") and None)
        with outer:
            with Handler(message) as inner:
                pass
            spin(lambda: False)
        self.assertEqual(("timed out", "done"), (outer.outcome, inner.outcome))

    def test_blocks_left_out_of_order_leave_nothing_behind(self):
        outer, inner = Handler(FakeMessage()), Handler(FakeMessage())
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        self.assertEqual(inner._handle_alarm, signal.getsignal(signal.SIGALRM))
        inner.__exit__(None, None, None)


class ContextlibTest(SignalTestCase):
    """A task may hang in C code that contextlib called for it: only who enters or leaves our block is left alone."""

    def stopped(self, hang):
        began = awake_seconds()
        with Handler(FakeMessage(), 30, 10, 0.1) as handler:
            hang()
        self.assertEqual("timed out", handler.outcome)
        self.assertLess(awake_seconds() - began, NEVER / 3)

    def locked(self):
        lock = threading.Lock()
        lock.acquire()
        return lock

    def test_a_task_hung_in_a_callback_of_an_exit_stack_has_its_limit(self):
        def hang():
            with contextlib.ExitStack() as stack:
                stack.callback(time.sleep, NEVER)

        self.stopped(hang)

    def test_a_task_hung_in_the_close_of_an_exit_stack_has_its_limit(self):
        def hang():
            stack = contextlib.ExitStack()
            stack.callback(time.sleep, NEVER)
            stack.close()

        self.stopped(hang)

    def test_a_task_hung_in_a_callback_of_an_asynchronous_exit_stack_has_its_limit(self):
        async def hang():
            async with contextlib.AsyncExitStack() as stack:
                stack.callback(time.sleep, NEVER)

        self.stopped(lambda: asyncio.run(hang()))

    def test_a_task_hung_in_what_closing_closes_has_its_limit(self):
        def hang():
            thing = mock.Mock(spec=["close"])
            thing.close = self.locked().acquire
            with contextlib.closing(thing):
                pass

        self.stopped(hang)

    def test_a_task_hung_in_entering_a_lock_has_its_limit(self):
        def hang():
            with contextlib.ExitStack() as stack:
                stack.enter_context(self.locked())

        self.stopped(hang)

    def test_a_task_hung_in_a_function_that_a_context_manager_decorates_has_its_limit(self):
        class Nothing(contextlib.ContextDecorator):
            def __enter__(self):
                return self

            def __exit__(self, *details):
                return False

        self.stopped(lambda: Nothing()(time.sleep)(NEVER))

        @contextlib.contextmanager
        def nothing():
            yield

        self.stopped(lambda: nothing()(time.sleep)(NEVER))

    def test_a_block_inside_a_context_manager_of_a_generator_is_left_whole(self):
        """Traced: the alarm comes at each event in turn of contextlib, while the block is entered and left."""

        @contextlib.contextmanager
        def claimed():
            with handler:
                yield

        def with_generator():
            with claimed():
                pass

        def with_stack():
            with contextlib.ExitStack() as stack:
                stack.enter_context(handler)

        def with_stack_of_generator():
            with contextlib.ExitStack() as stack:
                stack.enter_context(claimed())

        def with_decorator():
            claimed()(lambda: None)()

        def with_asynchronous_stack():
            async def enter():
                async with contextlib.AsyncExitStack() as stack:
                    stack.enter_context(handler)

            with contextlib.suppress(StopIteration):
                enter().send(None)

        ways = (with_generator, with_stack, with_stack_of_generator, with_decorator, with_asynchronous_stack)
        for run in ways:
            for nth in range(1, 300):
                handler = SignalledHandler(FakeMessage(), 300, 200, 100, clock=Clock())
                seen = 0

                def trace(frame, event, argument):
                    nonlocal seen
                    if frame.f_code.co_filename != contextlib.__file__:
                        return None
                    seen += 1
                    if seen == nth and isinstance(handler._block.alarm, Alarm):
                        handler._clock.now += 100
                        handler._handle_alarm(signal.SIGALRM, frame)
                    return trace

                previous = sys.gettrace()
                sys.settrace(trace)
                try:
                    run()
                finally:
                    sys.settrace(previous)
                self.assertEqual("done", handler.outcome, (run, nth))
                if seen < nth:
                    break


class ForeignAlarmTest(SignalTestCase):
    def setUp(self):
        super().setUp()
        self.calls = []
        self.foreign = lambda signum, frame: self.calls.append(time.monotonic())
        signal.signal(signal.SIGALRM, self.foreign)
        self.addCleanup(signal.signal, signal.SIGALRM, self.found)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)

    def test_defect_5_a_foreign_handler_and_its_one_shot_timer_are_put_back(self):
        signal.setitimer(signal.ITIMER_REAL, 50)
        with Handler(FakeMessage(), 30, 10, 60):
            self.assertLess(signal.getitimer(signal.ITIMER_REAL)[0], 11)
        self.assertIs(self.foreign, signal.getsignal(signal.SIGALRM))
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        self.assertTrue(20 < left < 50 and interval == 0, (left, interval))

    def test_a_foreign_handler_without_a_timer_is_put_back_without_one(self):
        with Handler(FakeMessage()):
            pass
        self.assertIs(self.foreign, signal.getsignal(signal.SIGALRM))
        self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))

    def test_a_foreign_one_shot_timer_goes_off_once_inside_the_block_at_its_time(self):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        message = FakeMessage()
        with Handler(message, 30, 0.2, 60):
            spin(lambda: self.calls)
            spin(lambda: len(message.changes) >= 3)
        self.assertEqual(1, len(self.calls))
        self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))

    def test_a_foreign_interval_timer_goes_on_inside_the_block_and_after(self):
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        message = FakeMessage()
        with Handler(message, 30, 0.08, 60) as handler:
            spin(lambda: len(self.calls) >= 3 and len(message.changes) >= 3)
        before = len(self.calls)
        spin(lambda: len(self.calls) >= before + 2)
        self.assertEqual("done", handler.outcome)
        self.assertEqual(0.05, signal.getitimer(signal.ITIMER_REAL)[1])

    def test_a_foreign_timer_that_was_due_while_the_task_held_the_interpreter_goes_off_after(self):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with Handler(FakeMessage(), 30, 10, 60):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            # On a machine that took its time to enter the block it has gone off already.
            spin(lambda: self.calls or signal.SIGALRM in signal.sigpending())
        spin(lambda: self.calls)
        self.assertEqual(1, len(self.calls))

    def test_a_foreign_timer_that_expires_while_the_block_is_entered_goes_off_once(self):
        """Forced: it has gone off when the alarm is borrowed, and is pending, and the timer tells nothing of it."""
        real = signal.getitimer

        def expired(which):
            if not signal.sigpending():
                signal.pthread_kill(threading.get_ident(), signal.SIGALRM)
            return real(which)

        for nested in (False, True):
            self.calls.clear()
            with self.subTest(nested=nested), contextlib.ExitStack() as stack:
                with mock.patch("signal.getitimer", expired):
                    stack.enter_context(Handler(FakeMessage(), 30, 10, 60))
                if nested:
                    stack.enter_context(Handler(FakeMessage(), 30, 10, 60))
                spin(lambda: self.calls)
                spin(lambda began=time.monotonic(): time.monotonic() > began + 0.02)
            self.assertEqual(1, len(self.calls))

    def test_a_foreign_limit_round_the_block_still_raises_through_it(self):
        def limit(signum, frame):
            raise InterruptedError("the foreign limit")

        signal.signal(signal.SIGALRM, limit)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with Handler(FakeMessage(), 30, 10, 60) as handler:
            spin(lambda: False)
        self.assertEqual("failed", handler.outcome)
        self.assertIsInstance(handler.notified[0][0], InterruptedError)

    def test_what_the_outer_block_found_is_put_back_though_its_task_took_sigalrm_before_an_inner_block(self):
        def of_the_task(signum, frame):
            raise AssertionError

        with Handler(FakeMessage()):
            signal.signal(signal.SIGALRM, of_the_task)
            with Handler(FakeMessage()):
                pass
            self.assertIs(of_the_task, signal.getsignal(signal.SIGALRM))
        self.assertIs(self.foreign, signal.getsignal(signal.SIGALRM))
        self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))


class LeavingTest(SignalTestCase):
    """Defect 6: an alarm between the body's end and the disarming. Each test forces the order."""

    def past_limit(self, kind=SignalledHandler, **kwargs):
        """A handler whose limit is reached as soon as `clock.now` is moved, and no timer goes off by itself."""
        self.clock = Clock()
        return kind(FakeMessage(**kwargs), 300, 200, 100, clock=self.clock)

    def check_done(self, handler):
        self.assertTrue(handler.landed, "the alarm came")
        self.assertEqual(("done", 1), (handler.outcome, handler._message.deletes))
        self.assertEqual([], handler.notified)

    def test_in_an_exit_of_the_subclass(self):
        with self.past_limit(AlarmedInItsExit) as handler:
            self.clock.now += 100
        self.check_done(handler)

    def test_in_a_long_exit_of_the_subclass_the_claim_is_kept(self):
        class Own(SignalledHandler):
            def __exit__(self, *details):
                spin(lambda: self._message.changes.count(3) >= 2)
                return super().__exit__(*details)

        with Own(FakeMessage(), 3, 1.5, 60) as handler:
            pass
        self.check_done(handler)

    def test_where_the_claim_is_found_lost_and_claim_lost_raises(self):
        class Own(SignalledHandler):
            def claim_lost(self, exception):
                raise InterruptedError

            def __exit__(self, *details):
                signal.raise_signal(signal.SIGALRM)
                return super().__exit__(*details)

        with self.past_limit(Own, on_change=Answers(None, LOST)) as handler:
            pass
        self.assertEqual("done", handler.outcome)

    def test_where_the_task_is_found_stuck_because_it_has_ended(self):
        class Own(SignalledHandler):
            def __exit__(self, *details):
                self.makes_progress = False
                signal.raise_signal(signal.SIGALRM)
                return super().__exit__(*details)

        with self.past_limit(Own) as handler:
            pass
        self.check_done(handler)

    def test_at_each_line_of_exit(self):
        """Traced: the alarm comes before each line in turn of __exit__, while it is still armed."""
        lines, leaving = 0, (MessageHandler.__exit__.__code__, AlarmBlock.leave.__code__)
        for nth in range(1, 100):
            seen = 0

            def trace(frame, event, argument):
                nonlocal seen
                if frame.f_code not in leaving:
                    return None
                if event in ("call", "line"):
                    seen += 1
                    if seen == nth and signal.getsignal(signal.SIGALRM) == handler._handle_alarm:
                        signal.raise_signal(signal.SIGALRM)
                return trace

            handler = self.past_limit()
            previous = sys.gettrace()
            try:
                with handler:
                    self.clock.now += 100
                    sys.settrace(trace)
            finally:
                sys.settrace(previous)
            self.assertEqual(("done", 1), (handler.outcome, handler._message.deletes))
            if not handler.landed:
                break
            lines = nth
        self.assertGreater(lines, 3)

    def alarm_soon(self):
        """Reach the limit, with an alarm that is to come in the C code which ends the body."""
        self.clock.now += 100
        signal.setitimer(signal.ITIMER_REAL, 0.003)

    def pending_at_the_end(self, attempt):
        """What attempt() gives, once an alarm came in its C code; one that came before has shown nothing."""
        for _ in range(50):
            handler = attempt()
            if handler.landed and handler.outcome != "timed out":
                return handler
        self.fail("the alarm never came in the C code")

    def test_pending_while_c_code_ends_the_body(self):
        def attempt():
            with self.past_limit() as handler:
                self.alarm_soon()
                1 in itertools.repeat(0, 2_000_000)  # an operator: no signal handlers are run after it
            return handler

        handler = self.pending_at_the_end(attempt)
        self.check_done(handler)
        self.assertEqual("__exit__", handler.landed_in()[0])

    def test_pending_while_c_code_ends_the_body_of_an_exit_stack(self):
        def attempt():
            with contextlib.ExitStack() as stack:
                handler = stack.enter_context(self.past_limit())
                self.alarm_soon()
                1 in itertools.repeat(0, 2_000_000)
            return handler

        handler = self.pending_at_the_end(attempt)
        self.check_done(handler)
        self.assertEqual("contextlib.py", os.path.basename(handler.landed[0].f_code.co_filename))

    def test_a_second_alarm_in_the_handling_of_one_that_may_not_raise_may_not_either(self):
        entered = []

        def raise_another(block, seconds):
            if entered[-1].depth == 1:
                signal.raise_signal(signal.SIGALRM)

        def attempt():
            with mock.patch.object(Block, "keep_claim", raise_another), contextlib.ExitStack() as stack:
                handler = stack.enter_context(self.past_limit())
                entered.append(handler)
                self.alarm_soon()
                1 in itertools.repeat(0, 2_000_000)
            return handler

        handler = self.pending_at_the_end(attempt)
        self.check_done(handler)
        self.assertGreaterEqual(handler.deepest, 2)
        self.assertFalse(AlarmBlock._at_border)

    def test_pending_while_c_code_fails(self):
        """Python 3.10 looks for signals between the exception and __exit__; later ones don't."""

        def attempt():
            failing = itertools.chain(itertools.repeat(0, 2_000_000), map(len, [5]))
            with self.past_limit() as handler:
                self.alarm_soon()
                1 in failing
            return handler

        handler = self.pending_at_the_end(attempt)
        self.assertEqual(("failed", 0), (handler.outcome, handler._message.deletes))
        self.assertIsInstance(handler.notified[0][0], TypeError)

    def test_a_failure_stays_the_failure_it_was(self):
        with self.past_limit(AlarmedInItsExit) as handler:
            self.clock.now += 100
            raise ValueError
        self.assertEqual("failed", handler.outcome)

    def in_the_disarming(self, handler):
        """Leave the block with an alarm that comes when it is blocked, just before the timer is switched off."""
        real = signal.setitimer

        def late(which, seconds, interval=0.0):
            if seconds == 0 and not handler.landed_late:
                handler.landed_late = True
                signal.pthread_kill(threading.get_ident(), signal.SIGALRM)
            return real(which, seconds, interval)

        handler.landed_late = False
        with handler:
            patch = mock.patch("signal.setitimer", late)
            patch.start()
            self.addCleanup(patch.stop)
        patch.stop()
        self.assertTrue(handler.landed_late)
        self.assertEqual(("done", 1), (handler.outcome, handler._message.deletes))

    def test_in_the_disarming_it_reaches_nobody(self):
        calls = []
        found = signal.signal(signal.SIGALRM, lambda signum, frame: calls.append(signum))
        self.addCleanup(signal.signal, signal.SIGALRM, found)
        handler = self.past_limit()
        self.in_the_disarming(handler)
        signal.signal(signal.SIGALRM, found)
        self.assertEqual(([], []), (calls, handler.landed))

    def test_seen_in_the_disarming_it_arms_nothing(self):
        real = signal.setitimer
        armed = []

        def late(which, seconds, interval=0.0):
            answer = real(which, seconds, interval)
            handler._handle_alarm(signal.SIGALRM, sys._getframe())
            armed.append(signal.getitimer(signal.ITIMER_REAL))
            return answer

        calls = []
        found = signal.signal(signal.SIGALRM, lambda signum, frame: calls.append(signum))
        self.addCleanup(signal.signal, signal.SIGALRM, found)
        for after in (0, 100):
            handler = self.past_limit()
            with handler:
                self.clock.now += after
                handler._block.alarm._below.due = 0  # what was there before is due too
                patch = mock.patch("signal.setitimer", late)
                patch.start()
                self.addCleanup(patch.stop)
            patch.stop()
            self.check_done(handler)
            self.assertEqual((0.0, 0.0), armed[0])
            spin(lambda: calls)
            calls.clear()

    def test_in_the_disarming_of_a_nested_block_the_outer_goes_on(self):
        message = FakeMessage()
        with Handler(message, 30, 0.1, 60) as outer:
            self.in_the_disarming(self.past_limit())
            before = len(message.changes)
            spin(lambda: len(message.changes) >= before + 2)
        self.assertEqual("done", outer.outcome)

    def test_a_foreign_alarm_that_raises_waits_until_the_block_is_left(self):
        """Raised in the midst of __exit__ it would leave SIGALRM with a handler whose task is over."""
        handler_calls = []

        def limit(signum, frame):
            handler_calls.append(frame)
            raise InterruptedError("the foreign limit")

        class Own(SignalledHandler):
            def __exit__(self, *details):
                spin(lambda: len(self.landed) >= 2)
                return super().__exit__(*details)

        found = signal.signal(signal.SIGALRM, limit)
        self.addCleanup(signal.signal, signal.SIGALRM, found)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        handler = self.past_limit(Own, on_delete=None)
        with self.assertRaises(InterruptedError):
            with handler:
                pass
            spin(lambda: False)
        self.assertIs(limit, signal.signal(signal.SIGALRM, found))
        self.assertEqual(1, len(handler_calls))
        self.assertIsInstance(handler._block.alarm, Unborrowed)

    def test_an_alarm_of_two_tasks_at_once_as_the_inner_is_left(self):
        with SignalledHandler(FakeMessage(), 30, 0.05, 0.05) as outer:
            with self.past_limit(AlarmedInItsExit) as inner:
                self.clock.now += 100
                with contextlib.suppress(HardTimeout):
                    spin(lambda: False)
        self.assertEqual(("timed out", "done"), (outer.outcome, inner.outcome))


if __name__ == "__main__":
    unittest.main()
