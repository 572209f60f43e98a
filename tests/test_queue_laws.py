"""The laws of a queue: one list, held to by LocalQueue, SimulatedQueue and a real SQS server: no fake can drift.

What LocalQueue does not promise (visibility, redelivery, dead letters) is a second list, over the other two.
"""

import contextlib
import hashlib
import re
import threading
import time
import unittest
import uuid
from unittest import mock

from botocore.exceptions import ClientError, EndpointConnectionError

from sqstaskmaster.errors import TasksNotSent
from sqstaskmaster.local import LocalQueue
from sqstaskmaster.message_handler import MessageHandler
from sqstaskmaster.task_manager import TaskManager
from sqstaskmaster.testing import SimulatedQueue
from tests.guard import awake_seconds
from tests.support import DEADLINE_SECONDS, ServerTestCase, free_port, lacks, wait_until

# Far more than any answer takes on a loaded machine, far less than the long poll it must not wait for.
AT_ONCE_SECONDS = 10

MALFORMED = (
    "no json",
    " ",
    "[1]",
    '"x"',
    "5",
    "null",
    "{}",
    '{"task": "T"}',
    '{"kwargs": {}}',
    '{"task": null, "kwargs": {}}',
    '{"task": "", "kwargs": {}}',
    '{"task": ["T"], "kwargs": {}}',
    '{"task": "T", "kwargs": null}',
    '{"task": "T", "kwargs": []}',
    '{"task": "T", "kwargs": "x"}',
    '{"task": "T", "kwargs": {"x": ' + "1" * 5000 + "}}",
    "[" * 10_000,
    '{"a":' * 10_000,
)


class Empty(Exception):
    """There was nothing more to receive."""


def drain(manager, wait_time=0, sqs_timeout=300):
    """Run the generator until a poll brings nothing. There must be no task in the queue."""
    receive = manager.queue.receive_messages

    def receive_some(**kwargs):
        received = receive(**kwargs)
        if not received:
            raise Empty
        return received

    with mock.patch.object(manager.queue, "receive_messages", receive_some), contextlib.suppress(Empty):
        for task in manager.task_generator(wait_time, sqs_timeout):
            raise AssertionError(f"yielded {task}")


class Work(MessageHandler):
    def run(self):
        pass


class QueueLaws:
    """What every queue keeps. `new_url` gives the URL of a new queue, `constructor` what TaskManager is given."""

    constructor = None

    def setUp(self):
        super().setUp()
        self.url = self.new_url()
        self.manager = self.new_manager()
        self.queue = self.manager.queue

    def new_manager(self, url=None, **options):
        return TaskManager(url or self.url, queue_constructor=self.constructor, **options)

    def receive_all(self, number):
        """`number` messages, in as many polls as it takes: a poll may bring fewer than there are."""
        received = []

        def enough():
            received.extend(self.queue.receive_messages(MaxNumberOfMessages=10, WaitTimeSeconds=1))
            return len(received) >= number

        wait_until(enough, f"{number} messages are received")
        return received

    def now(self):
        """The queue's time."""
        return time.monotonic()

    def depth(self):
        attributes = self.manager.attributes()
        names = ("", "NotVisible", "Delayed")
        return sum(int(attributes[f"ApproximateNumberOfMessages{name}"]) for name in names)

    def test_what_is_submitted_is_what_the_generator_yields(self):
        kwargs = {
            "int": 1,
            "float": 0.5,
            "none": None,
            "text": 'quotes " and \\ and\nлиния \U0001f600',
            "deep": [{"a": []}],
        }
        self.manager.submit("Task", **kwargs)
        task, received, message = next(self.manager.task_generator(wait_time=20))
        self.assertEqual(("Task", kwargs), (task, received))
        self.assertEqual(1, int(message.attributes["ApproximateReceiveCount"]))
        self.assertLess(0, int(message.attributes["SentTimestamp"]))

    def test_a_body_arrives_as_it_was_sent_with_its_checksum_and_id(self):
        body = '{"task": "T", "kwargs": {"x": "\\u00e9é"}}'
        answer = self.queue.send_message(MessageBody=body)
        [message] = self.receive_all(1)
        self.assertEqual(body, message.body)
        self.assertEqual(hashlib.md5(body.encode()).hexdigest(), answer["MD5OfMessageBody"])
        self.assertEqual(message.md5_of_body, answer["MD5OfMessageBody"])
        self.assertEqual(message.message_id, answer["MessageId"])

    def test_the_sender_arrives_as_a_message_attribute(self):
        self.new_manager(sender_name="the sender").submit("Task")
        [message] = self.queue.receive_messages(MessageAttributeNames=["All"], WaitTimeSeconds=20)
        attribute = message.message_attributes["service_name"]
        self.assertEqual(("the sender", "String"), (attribute["StringValue"], attribute["DataType"]))

    def test_the_trace_header_of_aws_arrives_as_it_was_sent(self):
        header = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"
        trace = {"AWSTraceHeader": {"StringValue": header, "DataType": "String"}}
        self.queue.send_message(MessageBody="x", MessageSystemAttributes=trace)
        (message,) = self.queue.receive_messages(AttributeNames=["All"], WaitTimeSeconds=5)
        self.assertEqual(header, message.attributes["AWSTraceHeader"])

    def test_a_poll_returns_as_soon_as_a_message_is_there(self):
        """Defect 15: the classic LocalQueue waited the whole WaitTimeSeconds though a message was ready."""
        self.manager.submit("Task")
        began = awake_seconds()
        for most in (1, 10):
            self.manager.submit("Task")
            self.assertTrue(self.queue.receive_messages(WaitTimeSeconds=20, MaxNumberOfMessages=most))
        self.assertLess(awake_seconds() - began, AT_ONCE_SECONDS)

    def test_a_message_sent_during_a_poll_ends_it(self):
        polling = threading.Timer(0.3, self.manager.submit, ["Late"])
        polling.start()
        self.addCleanup(polling.join)
        began = awake_seconds()
        self.assertEqual("Late", next(self.manager.task_generator(wait_time=20))[0])
        self.assertLess(awake_seconds() - began, AT_ONCE_SECONDS)

    def test_an_empty_queue_is_waited_for_as_long_as_was_asked(self):
        """Defect 15: the classic LocalQueue counted elapsed time twice, and gave up after half the wait."""
        for wait, soonest in ((0, 0), (1, 0.9)):
            began, awake = self.now(), awake_seconds()
            self.assertEqual([], list(self.queue.receive_messages(WaitTimeSeconds=wait, MaxNumberOfMessages=10)))
            self.assertLessEqual(soonest, self.now() - began)
            self.assertLess(awake_seconds() - awake, AT_ONCE_SECONDS)

    def test_a_poll_brings_no_more_than_was_asked(self):
        for number in range(4):
            self.manager.submit("Task", number=number)
        self.assertEqual(1, len(self.queue.receive_messages(WaitTimeSeconds=20)))
        self.assertIn(len(self.queue.receive_messages(MaxNumberOfMessages=2, WaitTimeSeconds=20)), (1, 2))

    def test_every_message_is_received_and_none_twice(self):
        sent = [f"Task {number}" for number in range(12)]
        for task in sent:
            self.manager.submit(task)
        messages = self.receive_all(len(sent))
        self.assertEqual(len(sent), len({message.message_id for message in messages}))
        self.assertEqual(len(sent), len({message.receipt_handle for message in messages}))
        self.assertEqual(0, len(self.queue.receive_messages(WaitTimeSeconds=0)))

    def test_two_managers_of_one_url_share_the_queue_and_another_url_is_another_queue(self):
        other = self.new_manager(self.new_url())
        self.new_manager().submit("Here")
        other.submit("There")
        self.assertEqual("Here", next(self.manager.task_generator())[0])
        self.assertEqual("There", next(other.task_generator())[0])

    def test_the_depth_counts_what_was_sent_and_not_deleted(self):
        self.assertEqual(0, self.depth())
        for _ in range(3):
            self.manager.submit("Task")
        wait_until(lambda: self.depth() == 3, "the depth is 3")
        for message in self.receive_all(3):
            message.delete()
        wait_until(lambda: self.depth() == 0, "the depth is 0")

    def test_attributes_are_those_of_now_and_name_the_queue(self):
        first = self.manager.attributes()
        self.assertTrue(first["QueueArn"].endswith(self.url.rpartition("/")[2]), first["QueueArn"])
        self.manager.submit("Task")
        wait_until(lambda: int(self.manager.attributes()["ApproximateNumberOfMessages"]) == 1, "one message is told")

    def test_a_purge_leaves_nothing(self):
        for _ in range(3):
            self.manager.submit("Task")
        self.manager.purge()
        wait_until(lambda: self.depth() == 0, "the queue is empty")
        self.assertEqual([], list(self.queue.receive_messages(WaitTimeSeconds=0)))

    def test_a_message_takes_a_new_visibility_and_a_delete(self):
        self.manager.submit("Task")
        _, _, message = next(self.manager.task_generator())
        for seconds in (30, 1):
            message.change_visibility(VisibilityTimeout=seconds)
        message.delete()
        self.assertEqual(0, self.depth())

    def test_a_handled_message_is_gone(self):
        self.manager.submit("Task")
        _, _, message = next(self.manager.task_generator())
        with Work(message, sqs_timeout=30, alarm_timeout=10, hard_timeout=60) as handler:
            handler.run()
        self.assertEqual("done", handler.outcome)
        self.assertEqual(0, self.depth())

    def test_a_number_or_a_wait_out_of_range_is_refused(self):
        for wrong in ({"MaxNumberOfMessages": 0}, {"MaxNumberOfMessages": 11}, {"WaitTimeSeconds": 21}):
            with self.subTest(wrong):
                try:
                    self.queue.receive_messages(**{"WaitTimeSeconds": 0, **wrong})
                except (ValueError, ClientError):
                    continue
                lacks(f"the check of {wrong}")

    def test_a_body_that_is_no_string_is_refused_and_not_sent(self):
        for body in (None, b"{}", 5, {"task": "T", "kwargs": {}}):
            with self.subTest(body=body), self.assertRaises(Exception) as refusal:
                self.queue.send_message(MessageBody=body)
            self.assertRegex(type(refusal.exception).__name__, "TypeError|ParamValidationError")
        self.assertEqual(0, self.depth())

    def test_no_malformed_body_ends_the_generator(self):
        """Defect 9: JSON that is no object, kwargs that are no object, a task that is no string ended the generator."""
        told = []
        manager = self.new_manager(notify=lambda exception, context: told.append((exception, context)))
        for body in MALFORMED:
            self.queue.send_message(MessageBody=body)
        self.manager.submit("Task", x=1)
        with self.assertLogs("sqstaskmaster.task_manager", "ERROR") as logs:
            task, kwargs, _ = next(manager.task_generator(sqs_timeout=300))
            # A standard queue keeps no order, so the rest may come after it.
            wait_until(lambda: len(told) == len(MALFORMED) or drain(manager), "every body is refused")
        self.assertEqual(("Task", {"x": 1}), (task, kwargs))
        self.assertEqual(sorted(MALFORMED), sorted(context["body"] for _, context in told))
        self.assertEqual({"1"}, {context["ApproximateReceiveCount"] for _, context in told})
        self.assertTrue(all(record.exc_info for record in logs.records))


class LocalQueueLaws(QueueLaws, unittest.TestCase):
    constructor = LocalQueue

    def new_url(self):
        url = f"local://queue/{uuid.uuid4().hex}"
        self.addCleanup(LocalQueue.local_queues.pop, url, None)
        return url

    def test_a_receive_that_need_not_wait_ends_at_once_each_time(self):
        # Python 3.10's SimpleQueue now and then waits for ever where it is given no time.
        def receive():
            for number in range(20_000):
                LocalQueue(f"{self.id()}-{number}").receive_messages(WaitTimeSeconds=0)

        self.addCleanup(LocalQueue.local_queues.clear)
        receiving = threading.Thread(target=receive, daemon=True)
        receiving.start()
        receiving.join(DEADLINE_SECONDS)
        self.assertFalse(receiving.is_alive())


class ServerLaws(QueueLaws, ServerTestCase):
    def new_url(self):
        return self.create_queue(visibility=300)


class Simulated:
    """SimulatedQueue by the names that the tests of a server have."""

    constructor = SimulatedQueue

    def create_queue(self, visibility=30, max_receive_count=None):
        queue = SimulatedQueue(visibility_timeout=visibility, max_receive_count=max_receive_count)
        self.addCleanup(SimulatedQueue.reset, queue.url)
        self.queues = [*getattr(self, "queues", ()), queue]
        if max_receive_count is not None:
            self.dead_letters = queue.dead_letter_queue.url
        return queue.url

    def receive(self, url):
        received = SimulatedQueue(url).receive_messages(MaxNumberOfMessages=10, AttributeNames=["All"])
        return [{"Body": message.body, "Attributes": message.attributes} for message in received]

    def counts(self, url):
        attributes = SimulatedQueue(url).attributes
        return tuple(int(attributes[f"ApproximateNumberOfMessages{name}"]) for name in ("", "NotVisible", "Delayed"))

    def pass_time(self, seconds):
        self.queues[0].advance(seconds)


class SimulatedQueueLaws(Simulated, QueueLaws, unittest.TestCase):
    def new_url(self):
        return self.create_queue(visibility=300)

    def now(self):
        return self.queue.now()


class ClaimLaws:
    """What SQS does beyond LocalQueue: claims run out, messages come back, and end with the dead letters."""

    constructor = None

    def pass_time(self, seconds):
        until = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() > until, f"{seconds} s have passed")

    def one_task(self, **queue):
        self.url = self.create_queue(**queue)
        self.manager = self.new_manager(self.url)
        self.manager.submit("Task")

    def new_manager(self, url, **options):
        return TaskManager(url, queue_constructor=self.constructor, **options)

    def take(self, sqs_timeout, wait_time=20):
        _, _, message = next(self.manager.task_generator(wait_time=wait_time, sqs_timeout=sqs_timeout))
        return message

    def count(self, message):
        return int(message.attributes["ApproximateReceiveCount"])

    def test_a_received_message_is_hidden_until_its_visibility_timeout_ends_and_then_comes_back(self):
        self.one_task()
        first = self.take(sqs_timeout=2)
        self.pass_time(0.5)
        self.assertEqual([], self.receive(self.url))
        self.assertEqual((0, 1, 0), self.counts(self.url))
        self.pass_time(1.5)
        second = self.take(sqs_timeout=60)
        self.assertEqual((1, 2), (self.count(first), self.count(second)))
        self.assertEqual(first.message_id, second.message_id)
        self.assertNotEqual(first.receipt_handle, second.receipt_handle)

    def test_an_extension_counts_from_now_and_does_not_add(self):
        self.one_task()
        message = self.take(sqs_timeout=600)
        message.change_visibility(VisibilityTimeout=1)
        began = awake_seconds()
        self.assertEqual(2, self.count(self.take(sqs_timeout=60)))
        self.assertLess(awake_seconds() - began, AT_ONCE_SECONDS)

    def test_an_extended_claim_outlives_the_first(self):
        self.one_task()
        message = self.take(sqs_timeout=2)
        message.change_visibility(VisibilityTimeout=300)
        self.pass_time(2)
        self.assertEqual([], self.receive(self.url))

    def test_a_claim_of_zero_brings_the_message_back_at_once(self):
        self.one_task()
        self.take(sqs_timeout=600).change_visibility(VisibilityTimeout=0)
        self.assertEqual(2, self.count(self.take(sqs_timeout=60)))

    def test_a_deleted_message_never_comes_back(self):
        self.one_task()
        message = self.take(sqs_timeout=1)
        message.delete()
        self.pass_time(1)
        self.assertEqual([], self.receive(self.url))

    def test_two_consumers_never_hold_the_same_message(self):
        self.one_task(visibility=300)
        self.manager.submit("Another")
        one, other = (next(self.new_manager(self.url).task_generator(sqs_timeout=300)) for _ in range(2))
        self.assertEqual({"Task", "Another"}, {one[0], other[0]})
        self.assertEqual([], self.receive(self.url))

    def test_a_malformed_message_is_left_to_the_redrive_policy(self):
        url = self.create_queue(max_receive_count=2)
        told = []
        manager = self.new_manager(
            url, notify=lambda exception, context: told.append(context["ApproximateReceiveCount"])
        )
        manager.queue.send_message(MessageBody="[1]")

        def dead():
            drain(manager, sqs_timeout=1)
            self.pass_time(1)
            return self.receive(self.dead_letters)

        with self.assertLogs("sqstaskmaster.task_manager", "ERROR"):
            [message] = wait_until(dead, "the dead-letter queue has it")
        self.assertEqual("[1]", message["Body"])
        self.assertEqual(["1", "2"], told)


class SimulatedClaimLaws(Simulated, ClaimLaws, unittest.TestCase):
    pass


class ServerOnlyLaws(ClaimLaws, ServerTestCase):
    """Over HTTP: what a queue in memory has no part in."""

    def test_a_message_of_the_largest_size_is_taken_and_comes_back_whole(self):
        url = self.create_queue()
        manager = TaskManager(url, sender_name="s")
        room = 1024 * 1024 - len('{"task": "T", "kwargs": {"data": ""}}') - len("service_name" "String" "s")
        try:
            manager.submit("T", data="x" * room)
        except ClientError as error:
            lacks(f"messages of 1 MiB: {error}")
        _, kwargs, _ = next(manager.task_generator())
        self.assertEqual(room, len(kwargs["data"]))

    def test_what_the_server_says_no_to_is_raised_by_submit_and_by_the_generator(self):
        gone = self.create_queue()
        self.sqs.delete_queue(QueueUrl=gone)
        manager = TaskManager(gone)
        for call, bare in (
            (lambda: manager.submit("Task"), lambda: self.sqs.send_message(QueueUrl=gone, MessageBody="x")),
            (lambda: next(manager.task_generator(wait_time=0)), lambda: self.sqs.receive_message(QueueUrl=gone)),
        ):
            with self.assertRaises(ClientError) as refusal:
                call()
            self.assertRegex(refusal.exception.response["Error"]["Code"], "QueueDoesNotExist|NonExistentQueue")
            with self.assertRaises(ClientError) as expected:
                bare()
            # Which class that is depends on the server, and on the release of botocore.
            self.assertEqual(type(expected.exception).__name__, type(refusal.exception).__name__)

    def test_where_there_is_no_such_queue_the_error_names_it_and_says_what_to_check(self):
        gone = self.create_queue()
        self.sqs.delete_queue(QueueUrl=gone)
        manager = TaskManager(gone)
        for call in (
            lambda: manager.submit("Task"),
            lambda: next(manager.task_generator(wait_time=0)),
            manager.attributes,
            lambda: manager.submit_many([("Task", {})]),
        ):
            with self.assertRaises((ClientError, TasksNotSent)) as refusal:
                call()
            self.assertRegex(str(refusal.exception), f"{re.escape(gone)}: check the queue's URL, its region")

    def test_a_server_that_is_not_there_ends_the_generator_with_its_error(self):
        with mock.patch.dict("os.environ", AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}", AWS_MAX_ATTEMPTS="1"):
            manager = TaskManager("http://127.0.0.1/123456789012/nowhere")
            with self.assertRaises(EndpointConnectionError):
                next(manager.task_generator())


if __name__ == "__main__":
    unittest.main()
