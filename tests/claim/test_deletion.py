"""The delete of finished work as a state machine. No clock but numbers, no requests."""

import math
import unittest

from hypothesis import given, settings
from hypothesis import strategies as st

from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._claim.deletion import Deleted, Deletion
from sqstaskmaster.errors import NoAnswer
from tests.support.handling import NO_ANSWERS, client_error

GONE = client_error("ReceiptHandleIsInvalid")
UNREADABLE = UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid")


def deletion(left=30, now=100.0):
    claim = Claim(30, 10, asked_at=now)
    if left:
        claim.received(now, left)
    return Deletion(claim, now, uniform=lambda low, high: high)


class DeletionTest(unittest.TestCase):
    def test_it_is_due_at_once_and_done_when_it_goes_through(self):
        tries = deletion()
        self.assertEqual((100, 5.0, 105), (tries.due, tries.begin(100), tries.due))
        self.assertIs(Deleted.DONE, tries.answered(None, 100.1))
        self.assertEqual(math.inf, tries.due)

    def test_whatever_is_raised_is_tried_again_after_pauses_that_double(self):
        tries, now = deletion(), 100.0
        for error, pause in zip((*NO_ANSWERS, client_error("InternalError"), UNREADABLE), (0.2, 0.4, 0.8, 1.6, 3.2, 5)):
            self.assertIs(Deleted.RETRY, tries.answered(error, now))
            self.assertAlmostEqual(now + pause, tries.due)
            now = tries.due

    def test_it_is_given_up_when_the_claim_ends_or_after_five_seconds_where_none_is_known(self):
        for left, least in ((30, 20), (0, 2)):
            tries, now = deletion(left), 100.0
            while tries.answered(NO_ANSWERS[0], now) is Deleted.RETRY:
                now = tries.due
            self.assertTrue(100 + least < now < 100 + max(left, 5), now)
            self.assertEqual(math.inf, tries.due)

    def test_a_claim_that_is_gone_is_no_reason_to_try_again(self):
        self.assertIs(Deleted.GIVE_UP, deletion().answered(GONE, 100))

    def test_a_try_whose_answer_was_lost_may_have_deleted_it(self):
        for error in (NO_ANSWERS[0], UNREADABLE, NoAnswer("late"), client_error("InternalError")):
            tries = deletion()
            tries.answered(error, 100)
            self.assertIs(Deleted.DONE, tries.answered(GONE, 101))

    def test_an_answer_that_said_no_has_not_deleted_it(self):
        tries = deletion()
        tries.answered(client_error("RequestThrottled"), 100)
        self.assertIs(Deleted.GIVE_UP, tries.answered(GONE, 101))

    def test_the_wait_for_an_answer_ends_with_the_claim(self):
        tries = deletion(left=8)
        self.assertEqual([5, 4, 1], [tries.begin(now) for now in (100, 104, 107.5)])

    @settings(deadline=None)
    @given(
        st.integers(0, 40), st.lists(st.tuples(st.sampled_from([None, GONE, UNREADABLE, *NO_ANSWERS]), st.floats(0, 5)))
    )
    def test_whatever_the_answers_it_ends_once_and_within_the_claim(self, left, answers):
        tries, now, given_up_at = deletion(left), 100.0, 100 + max(left, 5)
        for error, after in answers:
            now = tries.due + min(after, tries.begin(tries.due))
            verdict = tries.answered(error, now)
            self.assertEqual(verdict is Deleted.RETRY, tries.due < math.inf)
            if verdict is not Deleted.RETRY:
                self.assertTrue(error is None or verdict is Deleted.GIVE_UP or error is GONE)
                return
            self.assertLess(tries.due, given_up_at)


if __name__ == "__main__":
    unittest.main()
