"""Borrowing SIGALRM, below what the tests of the handler show of it."""

import functools
import math
import signal
import sys
import threading
import time
import unittest
from unittest import mock

from sqstaskmaster._signals import alarm, frames
from sqstaskmaster.errors import UnsupportedContext
from tests.support import wait_until
from tests.support.handling import SignalTestCase
from tests.support.loops import LOOPS, Block, Stop


class Manager:
    """Notes at the borders of its block whether a signal that lands there is seen to be outside."""

    def __init__(self):
        self.seen = []

    def __enter__(self):
        self.look()
        return self

    def __exit__(self, *details):
        self.look()

    def look(self):
        self.seen.append(frames.is_outside_body(sys._getframe(), Manager))


class OutsideBodyTest(unittest.TestCase):
    def test_entering_and_leaving_are_outside_and_the_body_is_inside(self):
        with Manager() as manager:
            manager.look()
        self.assertEqual([True, False, True], manager.seen)

    def test_the_borders_of_another_kind_of_block_are_inside(self):
        class Other(Manager):
            pass

        with Manager() as manager:
            manager.seen.append(frames.is_outside_body(sys._getframe(), Other))
        self.assertEqual([True, False, True], manager.seen)

    def test_no_frame_is_inside(self):
        for frame in (None, "anything", mock.Mock()):
            self.assertFalse(frames.is_outside_body(frame, Manager))


class RaiseAfterJumpTest(SignalTestCase):
    """What a signal's handler raises in a loop reaches the block round it, wherever the signal landed."""

    def stop(self, signum, frame):
        error = Stop()
        if not frames.raise_after_jump(frame, error):
            raise error

    def is_stopped(self, loop):
        signal.signal(signal.SIGALRM, self.stop)
        for _ in range(10):
            block = Block()
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            loop(block, True, range(10**12))
            self.assertIsInstance(block.error, Stop)
        signal.signal(signal.SIGALRM, self.found)

    @unittest.skipIf(sys.version_info < (3, 12), "there is no such jump")
    def test_no_tool_is_left_registered_and_one_that_is_anothers_is_left_alone(self):
        sys.monitoring.use_tool_id(4, "another")
        self.addCleanup(sys.monitoring.free_tool_id, 4)
        for loop in (LOOPS["while_busy"], LOOPS["while_true_without_end"]):
            self.is_stopped(loop)
        self.assertEqual(["another", None], [sys.monitoring.get_tool(number) for number in (4, 3)])

    def test_no_frame_has_no_jump(self):
        for frame in (None, "anything", mock.Mock()):
            self.assertFalse(frames.raise_after_jump(frame, Stop()))


for _name, _loop in LOOPS.items():
    setattr(RaiseAfterJumpTest, f"test_{_name}", functools.partialmethod(RaiseAfterJumpTest.is_stopped, _loop))


class AlarmTest(SignalTestCase):
    def borrow(self, seconds):
        calls = []
        borrowed = alarm.Alarm(lambda signum, frame: calls.append(signum))
        borrowed.borrow(seconds)
        self.addCleanup(borrowed.give_back)
        return borrowed, calls

    def test_an_alarm_comes_once(self):
        borrowed, calls = self.borrow(0.01)
        wait_until(lambda: calls, "the alarm comes")
        self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))
        self.assertTrue(borrowed.give_back())
        self.assertEqual([signal.SIGALRM], calls)

    def test_what_is_due_at_once_or_was_due_before_is_not_taken_for_never(self):
        for seconds in (0, 1e-9, -5):
            borrowed, calls = self.borrow(seconds)
            wait_until(lambda calls=calls: calls, "the alarm comes")
            borrowed.give_back()

    def test_an_alarm_may_be_armed_for_never(self):
        borrowed, _ = self.borrow(math.inf)
        self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))

    def test_giving_back_twice_is_giving_back_once(self):
        borrowed, _ = self.borrow(10)
        self.assertTrue(borrowed.give_back())
        signal.setitimer(signal.ITIMER_REAL, 50)
        self.assertTrue(borrowed.give_back())
        self.assertGreater(signal.setitimer(signal.ITIMER_REAL, 0)[0], 0)

    def test_of_several_the_earliest_is_armed(self):
        outer, _ = self.borrow(20)
        inner, _ = self.borrow(30)
        self.assertAlmostEqual(20, signal.getitimer(signal.ITIMER_REAL)[0], delta=5)
        inner.arm(5)
        self.assertLess(signal.getitimer(signal.ITIMER_REAL)[0], 6)
        inner.give_back()
        self.assertTrue(6 < signal.getitimer(signal.ITIMER_REAL)[0] < 21)
        outer.give_back()

    def test_sigalrm_is_left_unblocked(self):
        borrowed, _ = self.borrow(10)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        self.assertFalse(borrowed.give_back())
        self.assertNotIn(signal.SIGALRM, signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    def test_foreign_code_is_postponed_where_it_may_not_raise(self):
        calls = []
        found = signal.signal(signal.SIGALRM, lambda signum, frame: calls.append(signum))
        self.addCleanup(signal.signal, signal.SIGALRM, found)
        signal.setitimer(signal.ITIMER_REAL, 30)
        borrowed, _ = self.borrow(60)
        borrowed._below.due = time.monotonic()
        self.assertTrue(borrowed.hand_down(signal.SIGALRM, None, may_raise=False))
        self.assertEqual([], calls)
        self.assertLess(signal.getitimer(signal.ITIMER_REAL)[0], 1)
        borrowed._below.due = time.monotonic()
        self.assertTrue(borrowed.hand_down(signal.SIGALRM, None))
        self.assertEqual([signal.SIGALRM], calls)
        borrowed.give_back()
        signal.signal(signal.SIGALRM, found)
        self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))


class RequireAlarmTest(unittest.TestCase):
    def test_the_main_thread_is_fine_and_another_is_refused(self):
        alarm.require_alarm("X", "run it there")
        errors = []

        def ask():
            try:
                alarm.require_alarm("X", "run it there")
            except UnsupportedContext as error:
                errors.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(30)
        (error,) = errors
        self.assertRegex(error, "^X must be entered in the main thread.*: run it there$")


if __name__ == "__main__":
    unittest.main()
