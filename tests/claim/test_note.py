"""What the receiver notes on a message, and the clock it is noted by."""

import time
import unittest
from unittest import mock

from sqstaskmaster._claim import clock, note
from sqstaskmaster._claim.note import Receipt

RECEIPT = Receipt(100.0, 101.0, 30, "T", "https://queue")


class NoteTest(unittest.TestCase):
    def test_a_receipt_is_found_on_the_message_it_was_noted_on_and_nowhere_else(self):
        message = mock.Mock()
        self.assertIsNone(note.read(message))
        note.leave(message, RECEIPT)
        self.assertEqual(RECEIPT, note.read(message))
        self.assertIsNone(note.read(None))

    def test_a_receipt_that_was_taken_says_the_claim_once_and_its_beginning_for_ever(self):
        message = mock.Mock()
        self.assertIsNone(note.take(message))
        note.leave(message, RECEIPT)
        self.assertEqual(RECEIPT, note.take(message))
        self.assertEqual(Receipt(100.0, 101.0, None, "T", "https://queue"), note.take(message))

    def test_a_message_that_takes_no_attributes_is_left_alone(self):
        for message in (object(), (), "text"):
            note.leave(message, RECEIPT)
            self.assertIsNone(note.take(message))


class ClockTest(unittest.TestCase):
    @unittest.skipUnless(hasattr(time, "CLOCK_BOOTTIME"), "Linux has a clock that counts suspended time")
    def test_it_counts_the_time_that_the_machine_was_suspended(self):
        with mock.patch("time.clock_gettime", lambda which: {time.CLOCK_BOOTTIME: 5.0}[which]):
            self.assertEqual(5.0, clock.now())

    def test_without_such_a_clock_it_is_the_monotonic_one(self):
        for broken in (mock.patch("time.clock_gettime", side_effect=OSError), mock.patch.object(time, "clock_gettime")):
            with broken as patched, mock.patch("time.monotonic", return_value=7.0):
                if not patched.side_effect:
                    patched.side_effect = AttributeError
                self.assertEqual(7.0, clock.now())


if __name__ == "__main__":
    unittest.main()
