"""BoundedCall: waiting that can end before the call does."""

import _thread
import contextvars
import signal
import threading
import unittest
from unittest import mock

from sqstaskmaster._signals.bounded import BoundedCall

variable = contextvars.ContextVar("variable", default="default")


class BoundedCallTest(unittest.TestCase):
    def test_a_call_that_ends_is_waited_for_and_its_error_kept(self):
        error = KeyboardInterrupt("whatever kind")
        for function, expected in ((lambda: 1, None), (mock.Mock(side_effect=error), error)):
            call = BoundedCall(function)
            self.assertTrue(call.wait(30))
            self.assertTrue(call.wait(0))
            self.assertIs(expected, call.error)

    def test_a_call_that_does_not_end_is_given_up_and_goes_on(self):
        event, ended = threading.Event(), threading.Event()
        call = BoundedCall(lambda: event.wait(30) and ended.set())
        self.assertFalse(call.wait(0.01))
        self.assertFalse(call.wait(-1))
        event.set()
        self.assertTrue(ended.wait(30))
        self.assertTrue(call.wait(30))

    def test_it_runs_beside_the_caller_with_the_callers_context_and_no_signals(self):
        found = []

        def look():
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            found.append((threading.get_ident(), variable.get(), {signal.SIGALRM, signal.SIGTERM} <= blocked))

        token = variable.set("the caller's")
        self.addCleanup(variable.reset, token)
        self.assertTrue(BoundedCall(look).wait(30))
        ((thread, value, blocked),) = found
        self.assertNotEqual(threading.get_ident(), thread)
        self.assertEqual(("the caller's", True), (value, blocked))

    def test_without_a_thread_to_be_had_the_call_is_made_all_the_same(self):
        with mock.patch("sqstaskmaster._signals.bounded._thread.start_new_thread", side_effect=RuntimeError):
            call = BoundedCall(mock.Mock(side_effect=ValueError))
        self.assertTrue(call.wait(0))
        self.assertIsInstance(call.error, ValueError)

    def test_the_thread_takes_no_signal_not_even_while_it_starts(self):
        masks = []
        start = _thread.start_new_thread

        def look(*arguments):
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return start(*arguments)

        with mock.patch("_thread.start_new_thread", look):
            call = BoundedCall(lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        self.assertTrue(call.wait(60))
        for mask in masks:
            self.assertLessEqual({signal.SIGTERM, signal.SIGINT, signal.SIGALRM}, mask)
        self.assertNotIn(signal.SIGALRM, signal.pthread_sigmask(signal.SIG_BLOCK, ()))


if __name__ == "__main__":
    unittest.main()
