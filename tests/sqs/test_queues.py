"""Deletes and visibility changes of several messages at once: one request, an answer for each."""

import copy
import unittest
from unittest import mock

from botocore.exceptions import ClientError, EndpointConnectionError

from sqstaskmaster import LocalQueue, TaskManager
from sqstaskmaster._sqs.queues import QueueCalls
from sqstaskmaster.errors import NoAnswer
from tests.support import ServerTestCase

FAILURE = EndpointConnectionError(endpoint_url="http://sqs")


class Message:
    def __init__(self, name, error=None):
        self.receipt_handle = name
        self.error = error
        self.asked = []

    def _ask(self, what):
        self.asked.append(what)
        if self.error:
            raise self.error

    def delete(self):
        self._ask("delete")

    def change_visibility(self, *, VisibilityTimeout):
        self._ask(VisibilityTimeout)


class Batching:
    """A queue with batches of its own."""

    def __init__(self, answer=None, error=None):
        self.answer, self.error, self.sent = answer or {}, error, []

    def _send(self, entries):
        self.sent.append(entries)
        if self.error:
            raise self.error
        return self.answer

    def delete_messages(self, *, Entries):
        return self._send(Entries)

    def change_message_visibility_batch(self, *, Entries):
        return self._send(Entries)


class QueueCallsTest(unittest.TestCase):
    def test_several_messages_are_one_request(self):
        queue = Batching()
        calls = QueueCalls(queue)
        messages = [Message("a"), Message("b")]
        self.assertEqual(10, calls.most(messages[0]))
        self.assertEqual([None, None], calls.delete(messages))
        self.assertEqual([None, None], calls.change_visibility([(messages[0], 30), (messages[1], 7)]))
        self.assertEqual(
            [
                [{"Id": "0", "ReceiptHandle": "a"}, {"Id": "1", "ReceiptHandle": "b"}],
                [
                    {"Id": "0", "ReceiptHandle": "a", "VisibilityTimeout": 30},
                    {"Id": "1", "ReceiptHandle": "b", "VisibilityTimeout": 7},
                ],
            ],
            queue.sent,
        )
        self.assertEqual([], messages[0].asked)

    def test_a_single_message_is_asked_itself(self):
        queue, message = Batching(), Message("a")
        self.assertEqual([None], QueueCalls(queue).change_visibility([(message, 30)]))
        self.assertEqual([30], message.asked)
        self.assertEqual([], queue.sent)

    def test_a_failed_entry_is_that_messages_client_error_and_nobody_elses(self):
        failed = [{"Id": "1", "SenderFault": True, "Code": "ReceiptHandleIsInvalid", "Message": "gone"}]
        answer = {"Successful": [{"Id": "0"}], "Failed": failed}
        good, bad = QueueCalls(Batching(answer)).delete([Message("a"), Message("b")])
        self.assertIsNone(good)
        self.assertIsInstance(bad, ClientError)
        self.assertEqual("ReceiptHandleIsInvalid", bad.response["Error"]["Code"])
        self.assertIn("gone", str(bad))

    def test_what_an_answer_lists_nowhere_or_twice_is_unknown(self):
        done = [{"Id": "0"}, {"Id": "0"}, {"Id": "7"}]
        for answer in ({"Successful": [], "Failed": []}, {"Successful": done}, {"ResponseMetadata": {}}):
            with self.subTest(answer):
                errors = QueueCalls(Batching(answer)).delete([Message("a"), Message("b")])
                self.assertEqual([NoAnswer, NoAnswer], [type(error) for error in errors])

    def test_a_request_that_fails_as_a_whole_failed_for_each(self):
        self.assertEqual([FAILURE] * 2, QueueCalls(Batching(error=FAILURE)).delete([Message("a"), Message("b")]))

    def test_a_queue_without_batches_is_asked_one_by_one(self):
        for queue in (LocalQueue("x"), mock.Mock(spec=["receive_messages"])):
            calls, messages = QueueCalls(queue), [Message("a", FAILURE), Message("b")]
            self.assertEqual(1, calls.most(messages[0]))
            self.assertEqual([FAILURE, None], calls.delete(messages))
            self.assertEqual([FAILURE, None], calls.change_visibility([(message, 5) for message in messages]))
            self.assertEqual(["delete", 5], messages[1].asked)

    def test_a_wrapper_that_passes_everything_on_is_no_queue_with_batches(self):
        class Wrapper:
            def __init__(self, queue):
                self._queue = queue

            def __getattr__(self, name):
                return getattr(self._queue, name)

        self.assertEqual(1, QueueCalls(Wrapper(Batching())).most(Message("a")))


class ServerQueueCallsTest(ServerTestCase):
    def receive_all(self, queue, number):
        received = []
        while len(received) < number:
            received += queue.receive_messages(MaxNumberOfMessages=10, WaitTimeSeconds=1, VisibilityTimeout=30)
        return received

    def test_a_real_queue_takes_them_in_batches_and_tells_which_failed(self):
        queue = TaskManager(self.create_queue()).queue
        for number in range(3):
            queue.send_message(MessageBody=str(number))
        messages = self.receive_all(queue, 3)
        calls = QueueCalls(queue)
        self.assertEqual(10, calls.most(messages[0]))
        self.assertEqual([None] * 3, calls.change_visibility([(message, 0) for message in messages]))
        messages = self.receive_all(queue, 3)
        unknown = copy.copy(messages[0])
        unknown._receipt_handle = "no-such-receipt"
        good, bad = calls.change_visibility([(messages[0], 30), (unknown, 30)])
        self.assertIsNone(good)
        self.assertIsInstance(bad, ClientError)
        self.assertEqual([None] * 3, calls.delete(messages))
        self.assertEqual((0, 0, 0), self.counts(queue.url))

    def test_a_message_that_somebody_wrapped_is_asked_itself(self):
        queue = TaskManager(self.create_queue()).queue
        self.assertEqual(1, QueueCalls(queue).most(Message("a")))


if __name__ == "__main__":
    unittest.main()
