"""The policy of waiting, on its own, and as a handler's retry policy."""

import contextlib
import logging
import time
import unittest

from sqstaskmaster import ExponentialBackoff, LocalMessage, MessageHandler
from sqstaskmaster._claim import clock, note
from sqstaskmaster._sqs.limits import MAX_VISIBILITY_SECONDS


class ExponentialBackoffTest(unittest.TestCase):
    def test_the_bound_doubles_up_to_the_longest(self):
        backoff = ExponentialBackoff(first=10, longest=60)
        self.assertEqual([10, 20, 40, 60, 60], [backoff.bound(attempt) for attempt in (1, 2, 3, 4, 5)])
        self.assertEqual(60, backoff.bound(100_000))

    def test_the_wait_is_anything_from_nothing_to_the_bound(self):
        asked = []
        backoff = ExponentialBackoff(first=10, longest=60, uniform=lambda a, b: asked.append((a, b)) or b / 2)
        self.assertEqual(10, backoff(ValueError(), 2))
        self.assertEqual([(0.0, 20)], asked)
        for attempt in range(1, 200):
            self.assertTrue(0 <= ExponentialBackoff(first=1, longest=9)(ValueError(), attempt) <= 9)

    def test_what_is_out_of_range_is_refused_with_its_value(self):
        for wrong in ({"first": 0}, {"first": "1"}, {"longest": 5}, {"longest": 43201}, {"factor": 0.5}):
            with self.subTest(wrong), self.assertRaisesRegex(ValueError, str(next(iter(wrong.values())))):
                ExponentialBackoff(**wrong)


class Failing(MessageHandler):
    def __init__(self, message, delay=None, *, error=ValueError("failed")):
        super().__init__(message, sqs_timeout=30, alarm_timeout=10, hard_timeout=60)
        self.delay = delay
        self.error = error
        self.asked = []

    def run(self):
        raise self.error

    def retry_delay(self, exception, receive_count):
        self.asked.append((exception, receive_count))
        if isinstance(self.delay, Exception):
            raise self.delay
        return self.delay


class RetryDelayTest(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.message = self.received()

    def received(self):
        message = LocalMessage("{}", {"ApproximateReceiveCount": "3"})
        note.leave(message, note.Receipt(clock.now(), clock.now(), 30, "T"))
        return message

    def run_with(self, *arguments, **settings):
        handler = Failing(self.message, *arguments, **settings)
        with handler:
            handler.run()
        return handler

    def test_by_default_the_visibility_is_left_alone(self):
        self.run_with(None)
        self.assertEqual([], self.message.visibility_changes)

    def test_the_hook_is_told_the_exception_and_the_receive_count_and_sets_the_visibility(self):
        handler = self.run_with(90.2)
        self.assertEqual([(handler.error, 3)], handler.asked)
        self.assertEqual([91], self.message.visibility_changes)

    def test_a_ready_policy_is_a_class_attribute(self):
        class Ready(Failing):
            retry_delay = ExponentialBackoff(first=10, uniform=lambda a, b: b)

        with Ready(self.message) as handler:
            handler.run()
        self.assertEqual([40], self.message.visibility_changes)

    def test_the_delay_never_goes_past_the_claims_12_hours(self):
        received = clock.now() - 40_000
        note.leave(self.message, note.Receipt(received, received, 40_030, "T"))
        self.run_with(MAX_VISIBILITY_SECONDS)
        (seconds,) = self.message.visibility_changes
        self.assertTrue(3_150 <= seconds <= 3_200, seconds)

    def test_a_hook_that_fails_or_gives_nonsense_changes_nothing_and_hurts_nobody(self):
        for wrong in (-1, "soon", float("nan"), True, ZeroDivisionError()):
            with self.subTest(wrong):
                self.message = self.received()
                self.assertEqual("failed", self.run_with(wrong).outcome)
                self.assertEqual([], self.message.visibility_changes)

    def test_a_task_that_timed_out_or_was_stuck_is_delayed_too(self):
        for limit, running, outcome in ((0.05, True, "timed out"), (60, False, "stuck")):
            message = LocalMessage("{}", {"ApproximateReceiveCount": "1"})
            handler = Failing(message, 5)
            handler.hard_timeout, handler.alarm_timeout = limit, 0.1
            handler.running = lambda running=running: running
            handler.run = lambda: time.sleep(60)
            with self.subTest(outcome):
                with handler:
                    handler.run()
                self.assertEqual(outcome, handler.outcome)
                self.assertEqual(5, message.visibility_changes[-1])

    def test_an_interrupted_task_is_given_back_at_once_and_the_hook_not_asked(self):
        handler = Failing(self.message, 90, error=KeyboardInterrupt())
        with self.assertRaises(KeyboardInterrupt), handler:
            handler.run()
        self.assertEqual([], handler.asked)
        self.assertEqual([0], self.message.visibility_changes)

    def test_an_extension_under_way_is_over_before_the_delay_is_set(self):
        order = []

        class Slow(LocalMessage):
            def change_visibility(self, VisibilityTimeout):
                if VisibilityTimeout == 30:
                    order.append("extension begins")
                    time.sleep(0.3)
                order.append(VisibilityTimeout)

        handler = Failing(Slow("{}", {}), 7)
        with contextlib.suppress(ValueError), handler:
            handler._block.extensions.send(30)
            handler.run()
        self.assertEqual(7, order[-1])
        self.assertEqual(2, order.count(30))


if __name__ == "__main__":
    unittest.main()
