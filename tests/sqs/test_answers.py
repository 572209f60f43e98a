"""What the errors of SQS mean: to the holder of a claim, and to whoever may ask again."""

import json
import unittest

from botocore import exceptions
from botocore.parsers import ResponseParserError, create_parser
from botocore.session import get_session

from sqstaskmaster import ClaimLapsed
from sqstaskmaster._sqs.answers import (
    SQS_ERRORS,
    Kind,
    code_of,
    is_about_queue,
    is_answer,
    is_beyond_total,
    is_claim_lost,
    is_deleted,
    is_lacking,
    is_transient,
    kind_of,
    remedy_for,
)
from sqstaskmaster.errors import NoAnswer
from tests.support.handling import BEYOND_TOTAL, NO_ANSWERS, client_error


class ErrorsTest(unittest.TestCase):
    def test_only_what_a_deleted_message_answers_is_taken_for_its_deletion(self):
        gone = "Reason: Message does not exist or is not available for visibility timeout change."
        self.assertTrue(is_deleted(client_error("InvalidParameterValue", gone)))
        self.assertTrue(is_deleted(client_error("ReceiptHandleIsInvalid")))
        for error in (
            client_error("InvalidParameterValue", "The receipt handle has expired"),
            client_error("InvalidParameterValue", "Total VisibilityTimeout for the message is beyond the limit"),
            client_error("MessageNotInflight"),
            client_error("QueueDoesNotExist"),
            ClaimLapsed(5.0),
        ):
            with self.subTest(error):
                self.assertFalse(is_deleted(error))

    def test_the_code_is_found_with_and_without_the_prefix_of_the_query_protocol(self):
        for code in ("MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight"):
            self.assertEqual("MessageNotInflight", code_of(client_error(code)))
        self.assertEqual("", code_of(NO_ANSWERS[0]))

    def test_a_code_of_kms_is_kept_whole_in_both_spellings(self):
        for code in ("KMS.AccessDeniedException", "KmsAccessDenied"):
            self.assertEqual("KmsAccessDenied", code_of(client_error(code)))
        # As botocore reads the answer of AWS: the header in the one spelling, the body in the other.
        error = client_error("KMS.AccessDeniedException")
        error.response["Error"]["QueryErrorCode"] = "KmsAccessDenied"
        self.assertEqual("KmsAccessDenied", code_of(error))

    def test_every_error_of_kms_that_botocore_knows_has_a_remedy_or_is_throttling_and_is_about_the_whole_queue(self):
        model = get_session().get_service_model("sqs")
        codes = [name for name in model.shape_names if name.startswith("Kms") and model.shape_for(name).metadata]
        self.assertIn("KmsOptInRequired", codes)
        for code in codes:
            with self.subTest(code):
                error = client_error(code)
                throttled = kind_of(error) is Kind.REFUSED_FOR_NOW
                self.assertEqual(code == "KmsThrottled", throttled)
                self.assertEqual(not throttled, is_about_queue(error))
                if not throttled:
                    self.assertRegex(remedy_for(error), "kms:|KMS|key|Kms")
                    self.assertIs(Kind.REFUSED, kind_of(error))

    def test_a_server_that_lacks_an_operation_says_so_in_several_ways(self):
        for error in (with_status("InvalidAction", 400), with_status("500", 500), with_status("InternalFailure", 501)):
            self.assertTrue(is_lacking(error))
        for error in (with_status("InternalFailure", 500), with_status("AccessDenied", 403), NO_ANSWERS[0]):
            self.assertFalse(is_lacking(error))

    def test_what_is_about_the_whole_queue_is_decided_by_the_code(self):
        for code in (
            "AccessDenied",
            "AWS.SimpleQueueService.NonExistentQueue",
            "ExpiredToken",
            "KMS.DisabledException",
        ):
            self.assertTrue(is_about_queue(with_status(code, 400)))
        for code in ("OverLimit", "InvalidMessageContents", "RequestThrottled"):
            self.assertFalse(is_about_queue(with_status(code, 403)))

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
        self.assertFalse(is_answer(client_error("InternalError")))


def with_status(code, status):
    return exceptions.ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "SendMessage"
    )


def unreadable(content):
    """What botocore raises over such an answer."""
    model = get_session().get_service_model("sqs").operation_model("SendMessageBatch")
    try:
        create_parser("json").parse({"status_code": 200, "headers": {}, "body": content}, model.output_shape)
    except Exception as error:
        return error
    raise AssertionError(f"botocore can read {content}")


class KindTest(unittest.TestCase):
    def assert_kind(self, kind, *errors):
        for error in errors:
            with self.subTest(error):
                self.assertIs(kind, kind_of(error))

    def test_throttled_and_not_connected_is_refused_for_now(self):
        self.assert_kind(
            Kind.REFUSED_FOR_NOW,
            client_error("RequestThrottled"),
            with_status("AWS.SimpleQueueService.RequestThrottled", 403),
            with_status("ThrottlingException", 503),
            client_error("KmsThrottled"),
            client_error("KMS.ThrottlingException"),
            with_status("429", 429),
            exceptions.EndpointConnectionError(endpoint_url="u"),
            exceptions.ConnectTimeoutError(endpoint_url="u"),
            exceptions.ProxyConnectionError(proxy_url="u"),
            exceptions.NoCredentialsError(),
            ConnectionRefusedError(),
        )

    def test_any_other_code_of_sqs_is_refused(self):
        self.assert_kind(
            Kind.REFUSED,
            client_error("AccessDenied"),
            client_error("ReceiptHandleIsInvalid"),
            with_status("InvalidMessageContents", 400),
            exceptions.ParamValidationError(report="r"),
        )

    def test_no_answer_a_5xx_and_what_is_not_sqss_shape_is_unknown(self):
        self.assert_kind(
            Kind.UNKNOWN,
            NoAnswer("none"),
            exceptions.ReadTimeoutError(endpoint_url="u"),
            exceptions.ConnectionClosedError(endpoint_url="u"),
            exceptions.SSLError(endpoint_url="u", error="cut off"),
            ResponseParserError("x"),
            client_error("InternalError"),
            with_status("ServiceUnavailable", 503),
            with_status("404", 404),
            with_status("", 200),
            KeyError("of a queue of the user's own"),
        )

    def test_what_may_succeed_later_is_what_is_not_refused(self):
        for content in (b"[1]", b'"page"', json.dumps({"Successful": [1]}).encode()):
            with self.subTest(content):
                error = unreadable(content)
                self.assertTrue(is_transient(error))
                self.assertIs(Kind.UNKNOWN, kind_of(error))
        for error in (*NO_ANSWERS[:3], client_error("RequestThrottled"), client_error("InternalError"), NoAnswer("n")):
            self.assertTrue(is_transient(error))
        for error in (client_error("AccessDenied"), ValueError("of the user's")):
            self.assertFalse(is_transient(error))

    def test_no_answer_counts_among_the_errors_of_sqs(self):
        self.assertIsInstance(NoAnswer("none"), SQS_ERRORS)


if __name__ == "__main__":
    unittest.main()
