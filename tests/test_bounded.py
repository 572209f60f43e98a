"""BoundedCall: one call in a thread of its own."""

import _thread
import signal
import unittest
from unittest import mock

from sqstaskmaster.bounded import BoundedCall


class BoundedCallTest(unittest.TestCase):
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
