"""Which answers confirm a send, and what a batch's answer says of each of its entries."""

import functools
import unittest
from unittest import mock

import boto3
from botocore.exceptions import ClientError

from sqstaskmaster._sqs.answers import Kind, kind_of
from sqstaskmaster._sqs.confirmation import batch_results, check_done, check_sent, is_of_boto3
from sqstaskmaster._sqs.confirmation import md5
from sqstaskmaster.errors import NoAnswer

BODY = '{"task": "T", "kwargs": {}}'
CONFIRMED = {"MessageId": "m", "MD5OfMessageBody": md5(BODY)}
METADATA = {"ResponseMetadata": {"HTTPStatusCode": 200}}


class SentTest(unittest.TestCase):
    def test_of_boto3_an_answer_has_the_message_id_and_the_md5_of_the_body(self):
        check_sent({**CONFIRMED, **METADATA}, BODY, True)
        for answer in (
            METADATA,
            {},
            None,
            {**CONFIRMED, "MessageId": ""},
            {"MD5OfMessageBody": md5(BODY)},
            {"MessageId": "m"},
            {"MessageId": "m", "MD5OfMessageBody": "0" * 32},
        ):
            with self.subTest(answer), self.assertRaisesRegex(NoAnswer, "AWS_ENDPOINT_URL_SQS"):
                check_sent(answer, BODY, True)

    def test_a_users_own_queue_is_believed_when_it_returns(self):
        for answer in (None, {}, "sent", mock.Mock(), mock.MagicMock(), {"MessageId": "m", "MD5OfMessageBody": "else"}):
            with self.subTest(answer):
                check_sent(answer, BODY, False)

    def test_a_users_own_queue_that_hands_on_botocores_answer_must_have_a_message_id_in_it(self):
        check_sent({"MessageId": "m", "MD5OfMessageBody": "of a changed body", **METADATA}, BODY, False)
        with self.assertRaises(NoAnswer):
            check_sent(METADATA, BODY, False)

    def test_an_operation_that_says_nothing_is_done_where_the_answer_has_sqss_marks(self):
        def answer(headers, **more):
            return {"ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": headers, **more}}

        for done in (
            None,
            {},
            answer({"content-type": "application/x-amz-json-1.0"}),
            answer({}, RequestId="1"),
        ):
            check_done("DeleteMessage", done, "http://x")
        for headers in ({}, {"content-type": "text/html"}, {"content-type": "application/json"}):
            with self.subTest(headers), self.assertRaises(NoAnswer):
                check_done("DeleteMessage", answer(headers), "http://x")


class OfBoto3Test(unittest.TestCase):
    def setUp(self):
        session = boto3.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
        self.queue = session.resource("sqs").Queue("https://sqs.us-east-1.amazonaws.com/1/q")

    def test_boto3s_own_method_is_told_from_what_stands_in_its_place(self):
        class Wrapper:
            def __init__(self, queue):
                self.queue = queue

            def __getattr__(self, name):
                return getattr(self.queue, name)

        self.assertTrue(is_of_boto3(self.queue, "send_message"))
        self.assertFalse(is_of_boto3(Wrapper(self.queue), "send_message"))
        self.assertFalse(is_of_boto3(mock.Mock(), "send_message"))
        with mock.patch.object(self.queue, "send_message"):
            self.assertFalse(is_of_boto3(self.queue, "send_message"))


class BatchTest(unittest.TestCase):
    """Four entries, 0 to 3, of DeleteMessageBatch."""

    def results(self, successful, failed=(), of_boto3=True, bodies=None, **more):
        answer = {"Successful": [{"Id": each} for each in successful], "Failed": list(failed), **more}
        return batch_results("DeleteMessageBatch", answer, bodies or dict.fromkeys("0123"), of_boto3)

    def unknown(self, results):
        return "".join(name for name, result in results.items() if isinstance(result, NoAnswer))

    def test_what_is_in_neither_list_is_unknown(self):
        self.assertEqual("3", self.unknown(self.results("012")))
        for answer in ({}, {"Successful": [], "Failed": []}, None, "page", {"Successful": "page"}, {"Failed": [None]}):
            with self.subTest(answer):
                self.assertEqual(
                    "0123", self.unknown(batch_results("DeleteMessageBatch", answer, dict.fromkeys("0123"), True))
                )

    def test_what_is_listed_more_than_once_is_unknown(self):
        self.assertEqual("0", self.unknown(self.results("00123")))
        failed = {"Id": "1", "Code": "InternalError", "SenderFault": False}
        self.assertEqual("1", self.unknown(self.results("0123", [failed])))
        self.assertEqual("1", self.unknown(self.results("023", [failed, failed])))

    def test_an_id_that_was_never_sent_says_nothing(self):
        self.assertEqual("3", self.unknown(self.results(["0", "1", "2", "4", "invented", None])))
        self.assertEqual("", self.unknown(self.results("01234")))
        self.assertEqual(set("0123"), set(self.results("01234")))

    def test_a_failed_entry_is_the_error_that_a_request_of_its_own_would_have_raised(self):
        refused = {"Id": "0", "Code": "ReceiptHandleIsInvalid", "Message": "no", "SenderFault": True}
        faulty = {"Id": "1", "Code": "Whatever", "SenderFault": False}
        throttled = {"Id": "2", "Code": "RequestThrottled", "SenderFault": True}
        results = self.results("3", [refused, faulty, throttled])
        self.assertEqual("3", "".join(name for name, each in results.items() if not isinstance(each, ClientError)))
        self.assertEqual([Kind.REFUSED, Kind.UNKNOWN, Kind.REFUSED_FOR_NOW], [kind_of(results[name]) for name in "012"])

    def test_a_failed_entry_that_is_only_half_there_is_unknown(self):
        self.assertIs(Kind.UNKNOWN, kind_of(self.results("123", [{"Id": "0"}])["0"]))

    def test_an_entry_of_a_message_is_confirmed_as_a_message_is(self):
        results = functools.partial(batch_results, "SendMessageBatch", bodies={"0": BODY})
        for entry, of_boto3, unknown in (
            ({}, True, True),
            ({"MessageId": "m", "MD5OfMessageBody": "0"}, True, True),
            (CONFIRMED, True, False),
            ({}, False, False),
        ):
            with self.subTest(entry=entry, of_boto3=of_boto3):
                found = results({"Successful": [{"Id": "0", **entry}]}, of_boto3=of_boto3)
                self.assertEqual("0" if unknown else "", self.unknown(found))
        handed_on = {"Successful": [{"Id": "0"}], **METADATA}
        self.assertEqual("0", self.unknown(results(handed_on, of_boto3=False)))

    def test_a_users_own_queue_that_answers_without_lists_is_believed(self):
        for answer in (None, {}, "done"):
            found = batch_results("DeleteMessageBatch", answer, dict.fromkeys("01"), False)
            self.assertEqual({"0": {}, "1": {}}, found)
        self.assertEqual("1", self.unknown(self.results("023", of_boto3=False)))


if __name__ == "__main__":
    unittest.main()
