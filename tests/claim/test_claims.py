"""The arithmetic of a claim, and what the errors of SQS say of it."""

import unittest
from unittest import mock

from sqstaskmaster._claim import claims
from sqstaskmaster._sqs.answers import code_of, is_answer, is_beyond_total, is_claim_lost
from tests.support.handling import BEYOND_TOTAL, NO_ANSWERS, client_error

TWELVE_HOURS = 43200


class ClaimTest(unittest.TestCase):
    def test_a_claim_of_which_nothing_is_known_has_nothing_left(self):
        self.assertEqual(0, claims.Claim(received=100).left(100))

    def test_a_claim_runs_down_to_nothing_and_no_further(self):
        claim = claims.Claim(received=100)
        claim.extended(110, 30)
        self.assertEqual([30, 10, 0, 0], [claim.left(now) for now in (110, 130, 140, 150)])

    def test_an_extension_is_cut_to_the_whole_seconds_left_of_the_12_hours(self):
        claim = claims.Claim(received=100)
        cuts = [claim.cut(30, 100 + TWELVE_HOURS - left) for left in (40, 30, 29.9, 0.5, 0, -5)]
        self.assertEqual([30, 30, 29, 0, 0, 0], cuts)

    def test_a_claim_is_final_when_it_reaches_to_its_end(self):
        claim = claims.Claim(received=100)
        self.assertFalse(claim.is_final())
        claim.extended(100 + TWELVE_HOURS - 31.5, 30)
        self.assertFalse(claim.is_final())
        claim.extended(100 + TWELVE_HOURS - 30.9, 30)
        self.assertTrue(claim.is_final())

    def test_a_refusal_makes_what_is_held_the_end_and_never_moves_it_out(self):
        claim = claims.Claim(received=100, expires=150)
        claim.refused_as_too_long(120)
        self.assertEqual(150, claim.ends)
        claim.extended(120, 60)
        claim.refused_as_too_long(130)
        self.assertEqual(150, claim.ends)

    def test_a_claim_is_found_on_the_message_it_was_noted_on_and_nowhere_else(self):
        claim = claims.Claim(received=100)
        message = mock.Mock()
        self.assertIsNone(claims.of(message))
        claims.note(message, claim)
        self.assertIs(claim, claims.of(message))
        self.assertIsNone(claims.of(None))

    def test_a_message_that_takes_no_attributes_is_left_alone(self):
        for message in (object(), (), "text"):
            claims.note(message, claims.Claim(received=100))
            self.assertIsNone(claims.of(message))


class ErrorsTest(unittest.TestCase):
    def test_the_code_is_found_with_and_without_the_prefix_of_the_query_protocol(self):
        for code in ("MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight"):
            self.assertEqual("MessageNotInflight", code_of(client_error(code)))
        self.assertEqual("", code_of(NO_ANSWERS[0]))

    def test_only_what_sqs_says_of_the_claim_itself_means_that_it_is_lost(self):
        self.assertTrue(is_claim_lost(client_error("ReceiptHandleIsInvalid")))
        self.assertTrue(is_claim_lost(client_error("InvalidParameterValue", "The receipt handle has expired")))
        for error in (BEYOND_TOTAL, client_error("AccessDenied"), client_error("InternalError"), *NO_ANSWERS):
            self.assertFalse(is_claim_lost(error))

    def test_the_end_of_the_12_hours_is_told_from_a_lost_claim(self):
        self.assertTrue(is_beyond_total(BEYOND_TOTAL))
        self.assertFalse(is_beyond_total(client_error("InvalidParameterValue", "The receipt handle has expired")))

    def test_a_lost_connection_is_no_answer(self):
        self.assertEqual([True, False], [is_answer(error) for error in (BEYOND_TOTAL, NO_ANSWERS[0])])


if __name__ == "__main__":
    unittest.main()
