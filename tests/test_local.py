"""LocalQueue and LocalMessage: what they have beyond the laws they share with SQS (see test_queue_laws)."""

import hashlib
import queue
import threading
import unittest
from unittest import mock

from botocore.exceptions import ClientError

from sqstaskmaster.local import LocalMessage, LocalQueue
from sqstaskmaster.message_handler import MessageHandler
from sqstaskmaster.task_manager import TaskManager

URL = "local test"


class LocalQueueTest(unittest.TestCase):
    def setUp(self):
        LocalQueue.local_queues.pop(URL, None)
        self.addCleanup(LocalQueue.local_queues.pop, URL, None)
        self.queue = LocalQueue(URL)

    def test_the_attributes_say_what_it_replaces_and_how_much_it_holds(self):
        self.queue.send_message(MessageBody="one")
        self.assertEqual(
            {
                "QueueArn": "LocalQueue replacing: local test",
                "ApproximateNumberOfMessages": 1,
                "ApproximateNumberOfMessagesNotVisible": 0,
                "ApproximateNumberOfMessagesDelayed": 0,
                "FifoQueue": True,
                "ContentBasedDeduplication": False,
            },
            self.queue.attributes,
        )
        self.assertIsNone(self.queue.load())

    def test_all_queues_of_one_url_are_one_line_in_local_queues(self):
        self.assertIsInstance(self.queue.queue, queue.SimpleQueue)
        self.assertIs(self.queue.queue, LocalQueue.local_queues[URL])
        self.assertIs(self.queue.queue, LocalQueue(URL).queue)
        self.assertEqual(URL, self.queue.url)

    def test_first_in_is_first_out_in_polls_of_any_size(self):
        for number in range(14):
            self.queue.send_message(MessageBody=str(number))
        polls = [self.queue.receive_messages(MaxNumberOfMessages=most, WaitTimeSeconds=0) for most in (1, 3, 10, 10)]
        self.assertEqual([1, 3, 10, 0], [len(poll) for poll in polls])
        self.assertEqual([str(number) for number in range(14)], [message.body for poll in polls for message in poll])

    def test_a_poll_is_for_one_message_and_twenty_seconds_unless_said_otherwise(self):
        with mock.patch("sqstaskmaster.local.check_whole_seconds", return_value=0) as check:
            self.assertEqual([], self.queue.receive_messages())
            self.assertEqual([], self.queue.receive_messages(WaitTimeSeconds=7))
        asked = [value for name, value, highest in (call.args for call in check.mock_calls)]
        self.assertEqual([20, 7], asked)
        for _ in range(2):
            self.queue.send_message(MessageBody="x")
        self.assertEqual(1, len(self.queue.receive_messages()))

    def test_what_sqs_would_refuse_to_receive_is_refused(self):
        for most in (0, 11, 1.5, "1", None, True):
            with self.subTest(most), self.assertRaisesRegex(ValueError, f"from 1 to 10, not {most!r}"):
                self.queue.receive_messages(MaxNumberOfMessages=most, WaitTimeSeconds=0)
        for wait in (-1, 21, 0.5, "1", None):
            with self.subTest(wait), self.assertRaisesRegex(ValueError, "WaitTimeSeconds .* from 0 to 20"):
                self.queue.receive_messages(WaitTimeSeconds=wait)

    def test_the_answer_to_a_send_has_the_real_md5(self):
        answer = self.queue.send_message(MessageBody="é")
        self.assertEqual(hashlib.md5("é".encode()).hexdigest(), answer["MD5OfMessageBody"])

    def test_a_send_without_a_body_that_is_text_appends_nothing(self):
        for wrong in ({}, {"MessageBody": None}, {"MessageBody": b"{}"}):
            with self.assertRaisesRegex(TypeError, "MessageBody must be a string, not"):
                self.queue.send_message(**wrong)
        self.assertEqual(0, self.queue.queue.qsize())

    def test_what_sqs_would_refuse_to_take_is_refused_with_its_code_and_appends_nothing(self):
        fifo = LocalQueue(f"{URL}.fifo")
        for to, code, wrong in (
            (self.queue, "InvalidParameterValue", {"MessageBody": "x" * (2**20 + 1)}),
            (self.queue, "InvalidParameterValue", {"MessageDeduplicationId": "d"}),
            (fifo, "MissingParameter", {}),
            (fifo, "InvalidParameterValue", {"MessageGroupId": "g", "DelaySeconds": 1}),
        ):
            with self.subTest(code, wrong=list(wrong)), self.assertRaisesRegex(ClientError, code):
                to.send_message(**{"MessageBody": "x", **wrong})
        with self.assertRaisesRegex(TypeError, "MessageBody must be a string, not 5"):
            self.queue.send_messages(Entries=[{"Id": "0", "MessageBody": "x"}, {"Id": "1", "MessageBody": 5}])
        self.assertEqual(0, self.queue.queue.qsize() + fifo.queue.qsize())

    def test_a_body_with_a_lone_surrogate_is_kept_whole_or_not_at_all(self):
        self.queue.send_message(MessageBody="\ud800")
        self.assertEqual("\ud800", self.queue.receive_messages()[0].body)

    def test_many_producers_and_consumers_lose_nothing_and_double_nothing(self):
        received, lock = [], threading.Lock()

        def produce(part):
            for number in range(200):
                TaskManager(URL, queue_constructor=LocalQueue).submit("T", number=part * 200 + number)

        def consume():
            for _, kwargs, _ in TaskManager(URL, queue_constructor=LocalQueue).task_generator():
                if kwargs["number"] < 0:
                    return
                with lock:
                    received.append(kwargs["number"])

        consumers = [threading.Thread(target=consume, daemon=True) for _ in range(3)]
        producers = [threading.Thread(target=produce, args=[part], daemon=True) for part in range(3)]
        for thread in consumers + producers:
            thread.start()
        for thread in producers:
            thread.join(60)
        for _ in consumers:
            TaskManager(URL, queue_constructor=LocalQueue).submit("T", number=-1)
        for thread in consumers:
            thread.join(60)
        self.assertEqual(list(range(600)), sorted(received))

    def test_message_attributes_are_kept_whatever_they_are(self):
        for given in ({"a": "text"}, {"a": {"StringValue": "b", "DataType": "String"}}, "text", {"a": None}):
            self.queue.send_message(MessageBody="b", MessageAttributes=given)
            self.assertEqual(given, self.queue.receive_messages(WaitTimeSeconds=0)[0].message_attributes)

    def test_its_message_can_be_patched_in_its_module(self):
        with mock.patch("sqstaskmaster.local.LocalMessage") as made:
            self.queue.send_message(MessageBody="b", MessageAttributes={"a": "text"})
            made.assert_called_once_with("b", {}, {"a": "text"})
            self.assertEqual([made.return_value], self.queue.receive_messages(WaitTimeSeconds=0))

    def test_batches_of_deletes_and_changes_are_refused_in_words(self):
        for name in ("delete_messages", "change_message_visibility_batch"):
            with self.assertRaisesRegex(AttributeError, f"LocalQueue has no {name}: ask each message, or use"):
                getattr(self.queue, name)
        self.assertFalse(hasattr(self.queue, "something"))

    def test_what_it_ignores_is_ignored(self):
        self.queue.send_message(MessageBody="b")
        wanted = {"VisibilityTimeout": 5, "AttributeNames": ["All"], "MessageAttributeNames": ["All"]}
        self.assertEqual(1, len(self.queue.receive_messages(WaitTimeSeconds=0, **wanted)))

    def test_reset_forgets_what_one_url_or_all_were_sent(self):
        other = LocalQueue("local://other")
        for each in (self.queue, other):
            each.send_message(MessageBody="now")
            each.send_message(MessageBody="later", DelaySeconds=900)
        LocalQueue.reset(other.url)
        self.assertEqual(
            (0, 1), tuple(queue.attributes["ApproximateNumberOfMessages"] for queue in (other, self.queue))
        )
        self.assertEqual(0, other.attributes["ApproximateNumberOfMessagesDelayed"])
        LocalQueue.reset()
        self.assertEqual([], self.queue.receive_messages(WaitTimeSeconds=0))
        self.assertEqual(0, self.queue.attributes["ApproximateNumberOfMessagesDelayed"])
        LocalQueue.reset("local://never used")

    def test_reset_forgets_deduplication_ids(self):
        queue = LocalQueue("local://reset.fifo")
        for _ in range(2):
            queue.send_message(MessageBody="b", MessageGroupId="g", MessageDeduplicationId="d")
            self.assertEqual(1, len(queue.receive_messages(WaitTimeSeconds=0)))
            LocalQueue.reset(queue.url)

    def test_a_burst_of_tasks_ends_with_the_queue(self):
        manager = TaskManager(URL, queue_constructor=LocalQueue)
        self.assertEqual([], list(manager.task_generator(wait_time=0, burst=True)))
        for number in range(3):
            manager.submit("T", number=number)
        self.queue.send_message(MessageBody="malformed")
        with self.assertLogs("sqstaskmaster.task_manager", "ERROR"):
            tasks = list(manager.task_generator(wait_time=0, burst=True))
        self.assertEqual([0, 1, 2], [kwargs["number"] for _, kwargs, _ in tasks])

    def test_its_text_names_the_url(self):
        self.assertIn(URL, str(self.queue))


class LocalMessageTest(unittest.TestCase):
    def test_it_has_what_it_was_made_of(self):
        message = LocalMessage("body", {"a": 1}, {"b": 2})
        self.assertEqual(("body", {"a": 1}, {"b": 2}), (message.body, message.attributes, message.message_attributes))
        self.assertEqual((False, []), (message.deleted, message.visibility_changes))

    def test_what_became_of_it_can_be_seen_afterwards(self):
        message = LocalMessage("body", None, None)
        message.change_visibility(VisibilityTimeout=30)
        message.change_visibility(VisibilityTimeout=0)
        self.assertFalse(message.deleted)
        message.delete()
        self.assertEqual((True, [30, 0]), (message.deleted, message.visibility_changes))

    def test_its_methods_take_any_arguments(self):
        message = LocalMessage("body", None, None)
        message.change_visibility(5)
        message.change_visibility()
        message.change_visibility(VisibilityTimeout=5, Other=1)
        message.delete("now", Other=1)
        self.assertEqual((True, [5]), (message.deleted, message.visibility_changes))

    def test_it_knows_the_queue_it_was_received_from(self):
        LocalQueue.reset(URL)
        LocalQueue(URL).send_message(MessageBody="b")
        (message,) = LocalQueue(URL).receive_messages(WaitTimeSeconds=0)
        self.assertEqual(URL, message.Queue().url)
        with self.assertRaisesRegex(ValueError, "local-.*put it into one"):
            LocalMessage("b").Queue()

    def test_its_text_is_readable_and_holds_no_body(self):
        message = LocalMessage("a secret", None, None)
        self.assertRegex(str(message), r"^LocalMessage\(message_id='local-\d+', deleted=False\)$")

    def test_a_handler_leaves_its_trace_on_it(self):
        class Handler(MessageHandler):
            def run(self, error=None):
                if error:
                    raise error

        done, failed = LocalMessage("body", None, None), LocalMessage("body", None, None)
        with Handler(done, 30, 10, 60) as handler:
            handler.run()
        with self.assertLogs("sqstaskmaster", "ERROR"), Handler(failed, 30, 10, 60) as handler:
            handler.run(ValueError())
        self.assertEqual((True, [30]), (done.deleted, done.visibility_changes))
        self.assertFalse(failed.deleted)


if __name__ == "__main__":
    unittest.main()
