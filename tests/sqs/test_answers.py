"""What the errors of SQS mean to the holder of a claim."""

import unittest

from sqstaskmaster._sqs.answers import code_of, is_answer, is_beyond_total, is_claim_lost
from tests.support.handling import BEYOND_TOTAL, NO_ANSWERS, client_error


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
