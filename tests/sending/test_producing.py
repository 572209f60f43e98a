"""submit_many and options: one list of laws for LocalQueue and a real SQS server, and what only a server can do."""

import contextvars
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import unittest
import uuid
from unittest import mock

import boto3
from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError

from sqstaskmaster._sending import sending
from sqstaskmaster._sqs.confirmation import md5
from sqstaskmaster.errors import MessageTooLarge, SubmitInterrupted, TasksNotSent
from sqstaskmaster.local import LocalQueue
from sqstaskmaster.task_manager import TaskManager
from tests.support import DEADLINE_SECONDS, ServerTestCase, endpoint, session, wait_until
from tests.support.faults import Faulty
from tests.support.proxy import Cut, Proxy, Raw, error

MIB = 1024 * 1024


def numbered(count, start=0):
    return [("T", {"n": number}) for number in range(start, start + count)]


class MessageAttributesTest(unittest.TestCase):
    def setUp(self):
        LocalQueue.local_queues.pop("attributes", None)
        self.manager = TaskManager("attributes", queue_constructor=LocalQueue, sender_name="me")

    def received(self):
        return next(self.manager.task_generator(wait_time=0, message_attribute_names=["All"]))[2].message_attributes

    def test_they_travel_beside_the_senders_name_as_text_number_or_bytes(self):
        given = {"trace-id": "abc", "n": 3, "x.y": 0.5, "raw": b"\x00\xff"}
        self.manager.options(message_attributes=given).submit("T", a=1)
        self.assertEqual(
            {
                "service_name": {"StringValue": "me", "DataType": "String"},
                "trace-id": {"StringValue": "abc", "DataType": "String"},
                "n": {"StringValue": "3", "DataType": "Number"},
                "x.y": {"StringValue": "0.5", "DataType": "Number"},
                "raw": {"BinaryValue": b"\x00\xff", "DataType": "Binary"},
            },
            self.received(),
        )

    def test_ten_of_others_are_warned_of_once_since_ours_has_no_room_then(self):
        def traced(**request):
            """As a queue of the user's own making, which does without our sender's name."""
            request["MessageAttributes"].pop("service_name")
            request["MessageAttributes"].update({f"t{n}": {"StringValue": "x", "DataType": "String"} for n in range(2)})

        with mock.patch.object(self.manager.queue, "send_message", traced):
            with self.assertNoLogs("sqstaskmaster.task_manager", "WARNING"):
                self.manager.options(message_attributes={f"a{n}": n for n in range(7)}).submit("T")
            with self.assertLogs("sqstaskmaster.task_manager", "WARNING") as logs:
                for _ in range(2):
                    self.manager.options(message_attributes={f"a{n}": n for n in range(8)}).submit("T")
        (record,) = logs.records
        self.assertEqual("no_room_for_attribute", record.action)

    def test_so_they_are_where_many_are_sent(self):
        def traced(Entries):
            for entry in Entries:
                entry["MessageAttributes"].pop("service_name")
                entry["MessageAttributes"].update({f"t{n}": {"StringValue": "x", "DataType": "String"} for n in "ab"})

        with mock.patch.object(self.manager.queue, "send_messages", traced):
            with self.assertLogs("sqstaskmaster.task_manager", "WARNING") as logs:
                view = self.manager.options(message_attributes={f"a{n}": n for n in range(8)})
                self.assertEqual(3, view.submit_many(numbered(3)).sent)
        self.assertEqual(["no_room_for_attribute"], [record.action for record in logs.records])

    def test_more_are_added_and_replace_those_of_the_same_name(self):
        first = self.manager.options(message_attributes={"tenant": "a", "n": 0})
        first.options(message_attributes={"n": 1}).submit("T")
        first.options(message_attributes=lambda task, kwargs: {"n": kwargs["n"]}).submit("T", n=1)
        for _ in range(2):
            found = self.received()
            self.assertEqual(("a", "1"), (found["tenant"]["StringValue"], found["n"]["StringValue"]))
        with self.assertRaisesRegex(ValueError, "up to 8"):
            first.options(message_attributes={f"a{n}": n for n in range(7)})

    def test_a_function_gives_each_task_its_own(self):
        view = self.manager.options(message_attributes=lambda task, kwargs: {"n": kwargs["n"]})
        view.submit_many([("T", {"n": n}) for n in range(2)])
        self.assertEqual(["0", "1"], sorted(self.received()["n"]["StringValue"] for _ in range(2)))

    def test_what_sqs_would_refuse_is_refused_where_it_is_given(self):
        for bad, text in (
            ({"aws.trace": "x"}, "AWS."),
            ({"a..b": "x"}, "a..b"),
            ({"": "x"}, "1 to 256"),
            ({"service_name": "x"}, "this package's own"),
            ({"sqstaskmaster": "x"}, "this package's own"),
            ({"a": ""}, "'a' must be text"),
            ({"a": True}, "'a' must be text"),
            ({"a": float("nan")}, "finite"),
            ({"a": None}, "'a' must be"),
            ({str(n): "x" for n in range(9)}, "up to 8"),
            ("abc", "by name"),
        ):
            with self.subTest(bad), self.assertRaisesRegex(ValueError, text):
                self.manager.options(message_attributes=bad)

    def test_they_count_towards_the_size_of_the_message(self):
        attributes = {f"a{n}": "x" * 200_000 for n in range(6)}
        with self.assertRaises(MessageTooLarge):
            self.manager.options(message_attributes=attributes).submit("T")
        self.assertEqual(0, LocalQueue("attributes").attributes["ApproximateNumberOfMessages"])


class SystemExitTest(unittest.TestCase):
    def test_a_queue_that_raises_system_exit_in_a_sender_is_a_failure_and_hangs_nobody(self):
        class Queue(LocalQueue):
            def send_messages(self, **_):
                raise SystemExit(3)

        manager = TaskManager("exits", queue_constructor=Queue)
        with self.assertLogs("sqstaskmaster", "ERROR"), self.assertRaises(TasksNotSent) as caught:
            manager.submit_many([("T", {"n": n}) for n in range(3)])
        self.assertEqual(["SystemExit"] * 3, [failure.code for failure in caught.exception.failures])


class TaskArgumentTest(unittest.TestCase):
    def test_an_argument_named_task_is_refused_with_the_way_to_send_it(self):
        manager = TaskManager("named", queue_constructor=LocalQueue)
        with self.assertRaisesRegex(TypeError, r"submit_many\(\[\(task, kwargs\)\]\)"):
            manager.submit("T", task=1)
        manager.submit(task="T", x=1)
        self.assertEqual(("T", {"x": 1}), next(manager.task_generator(wait_time=0))[:2])


class ProducingLaws:
    """`new_url` gives the URL of a new queue, `constructor` what TaskManager is given."""

    constructor = None

    def manager(self, fifo=False, **options):
        return TaskManager(self.new_url(fifo), queue_constructor=self.constructor, **options)

    def receive_all(self, manager, number):
        """`number` messages and no more, in the order in which they are received."""
        received = []

        def poll(wait):
            for message in manager.queue.receive_messages(
                MaxNumberOfMessages=10, WaitTimeSeconds=wait, AttributeNames=["All"], MessageAttributeNames=["All"]
            ):
                received.append(message)
                message.delete()
            return len(received) >= number

        wait_until(lambda: poll(1), f"{number} messages are received")
        poll(0)
        self.assertEqual(number, len(received))
        return received

    def numbers(self, messages):
        return [json.loads(message.body)["kwargs"]["n"] for message in messages]

    def depth(self, manager):
        return int(manager.attributes()["ApproximateNumberOfMessages"])

    def test_every_task_of_any_iterable_arrives_once_and_its_id_is_known(self):
        for kind in (list, tuple, iter, lambda tasks: (each for each in tasks)):
            manager = self.manager(sender_name="me")
            result = manager.submit_many(kind(numbered(25)))
            self.assertEqual((25, 25, 0), (result.taken, result.sent, result.failed))
            messages = self.receive_all(manager, 25)
            self.assertEqual(list(range(25)), sorted(self.numbers(messages)))
            ids = {number: message.message_id for number, message in zip(self.numbers(messages), messages)}
            self.assertEqual([ids[number] for number in range(25)], list(result.message_ids))
            senders = {message.message_attributes["service_name"]["StringValue"] for message in messages}
            self.assertEqual({"me"}, senders)

    def test_what_is_sent_together_is_what_would_be_sent_alone(self):
        manager = self.manager()
        manager.submit("T", a=[1, "ä"], b=None)
        manager.submit_many([("T", {"a": [1, "ä"], "b": None})])
        one, other = self.receive_all(manager, 2)
        self.assertEqual((one.body, one.message_attributes), (other.body, other.message_attributes))

    def test_nothing_to_send_is_nothing_sent(self):
        result = self.manager().submit_many(())
        self.assertEqual((0, 0, 0, []), (result.taken, result.sent, result.failed, list(result.message_ids)))

    def test_tasks_that_can_never_be_sent_are_listed_and_do_not_stop_the_others(self):
        manager = self.manager()
        cycle = []
        cycle.append(cycle)
        tasks = numbered(24)
        wrong = {
            2: (("Long", {"data": "x" * MIB}), "MessageTooLarge"),
            7: (("Cycle", {"data": cycle}), "InvalidTask"),
            8: (("", {}), "InvalidTask"),
            13: (("T", None), "InvalidTask"),
            14: (("T", {1: 2}), "InvalidTask"),
            15: (("T",), "InvalidTask"),
            23: (5, "InvalidTask"),
        }
        for index, (task, _) in wrong.items():
            tasks[index] = task
        with self.assertRaises(TasksNotSent) as raised:
            manager.submit_many(tasks)
        failures = raised.exception.failures
        self.assertEqual(
            {index: code for index, (_, code) in wrong.items()}, {each.index: each.code for each in failures}
        )
        self.assertEqual(("Long", {"data": "x" * MIB}), tuple(failures[0]))
        self.assertIn("1,048,", failures[0].reason)
        for text in ("17 of the 24", "2 'Long': MessageTooLarge: ", "7 'Cycle': InvalidTask: "):
            self.assertIn(text, str(raised.exception))
        self.assertEqual((24, 17, 7), (lambda r: (r.taken, r.sent, r.failed))(raised.exception.result))
        kept = set(range(24)) - set(wrong)
        self.assertEqual(kept, set(self.numbers(self.receive_all(manager, 17))))
        self.assertEqual(kept, {n for n, each in enumerate(raised.exception.result.message_ids) if each})

    def test_an_error_can_be_given_back_and_so_can_its_failures(self):
        manager = self.manager()
        bad = {3, 11}
        unsure = manager.options(delay_seconds=lambda task, kwargs: 0 // (kwargs["n"] not in bad))
        with self.assertRaises(TasksNotSent) as first:
            unsure.submit_many(numbered(15))
        self.assertEqual(["ZeroDivisionError"] * 2, [failure.code for failure in first.exception.failures])
        bad.remove(11)
        with self.assertRaises(TasksNotSent) as second:
            unsure.submit_many(first.exception)
        [failure] = second.exception.failures
        self.assertEqual((0, "T", {"n": 3}, "ZeroDivisionError"), tuple(vars(failure).values())[:4])
        self.assertEqual(1, manager.submit_many(second.exception.failures).sent)
        self.assertEqual(list(range(15)), sorted(self.numbers(self.receive_all(manager, 15))))

    def test_an_iterable_that_raises_has_what_it_gave_sent_first(self):
        def tasks():
            yield from numbered(13)
            raise LookupError("the database is gone")

        manager = self.manager()
        with (
            self.assertRaisesRegex(LookupError, "the database is gone"),
            self.assertLogs("sqstaskmaster", "ERROR") as logs,
        ):
            manager.submit_many(tasks())
        self.assertIn("sent=13", logs.output[0])
        self.assertEqual(13, len(self.receive_all(manager, 13)))

    def test_tasks_of_a_slow_iterable_are_sent_though_no_request_is_full(self):
        manager = self.manager()

        def tasks():
            yield from numbered(3)
            wait_until(lambda: self.depth(manager) == 3, "three tasks are sent")
            yield from numbered(1, 3)

        self.assertEqual(4, manager.submit_many(tasks()).sent)

    def test_progress_is_told_in_the_calling_thread_and_ends_with_all(self):
        told = []
        manager = self.manager()
        manager.submit_many(
            numbered(30), on_progress=lambda result: told.append((threading.get_ident(), result.sent, result.taken))
        )
        self.assertEqual({threading.get_ident()}, {each[0] for each in told})
        self.assertEqual((30, 30), told[-1][1:])

    def test_progress_that_raises_is_logged_and_stops_nothing(self):
        with self.assertLogs("sqstaskmaster", "ERROR") as logs:
            self.assertEqual(12, self.manager().submit_many(numbered(12), on_progress=lambda result: 1 / 0).sent)
        self.assertIn("ZeroDivisionError", logs.output[0])

    def test_an_interrupt_in_the_middle_of_a_task_loses_none(self):
        def delay(task, kwargs):
            if kwargs["n"] == 14:
                raise KeyboardInterrupt
            return 0

        manager = self.manager()
        with self.assertRaises(SubmitInterrupted) as raised, self.assertLogs("sqstaskmaster", "WARNING"):
            manager.options(delay_seconds=delay).submit_many(iter(numbered(40)))
        sent = self.numbers(self.receive_all(manager, raised.exception.result.sent))
        self.assertEqual(list(range(40)), sorted(sent + [kwargs["n"] for _, kwargs in raised.exception]))

    def test_wrong_arguments_are_refused_before_anything_is_taken(self):
        tasks = iter(numbered(1))
        manager = self.manager()
        for threads in (0, 65, 1.5, "8", True, None):
            with (
                self.subTest(threads),
                self.assertRaisesRegex(ValueError, "threads must be a whole number from 1 to 64"),
            ):
                manager.submit_many(tasks, threads=threads)
        with self.assertRaisesRegex(TypeError, "on_progress must be callable"):
            manager.submit_many(tasks, on_progress=5)
        with self.assertRaises(TypeError):
            manager.submit_many(5)
        self.assertEqual(numbered(1), list(tasks))

    def test_options_out_of_range_are_refused_before_anything_is_sent(self):
        manager = self.manager()
        for delay in (-1, 901, 1.5, "5", True):
            with self.subTest(delay), self.assertRaisesRegex(ValueError, "delay_seconds .* from 0 to 900, not"):
                manager.options(delay_seconds=delay)
        for group in ("", "a b", "ä", "x" * 129, 5):
            with self.subTest(group), self.assertRaisesRegex(ValueError, "message_group_id .* 1 to 128 ASCII"):
                manager.options(message_group_id=group)
        with self.assertRaisesRegex(ValueError, "only FIFO queues"):
            manager.options(message_deduplication_id="x")
        with self.assertRaisesRegex(ValueError, "from 0 to 900, not 901"):
            manager.options(delay_seconds=lambda task, kwargs: 901).submit("T")
        with self.assertRaises(TasksNotSent):
            manager.options(delay_seconds=lambda task, kwargs: 901).submit_many(numbered(1))
        self.assertEqual(0, self.depth(manager))

    def test_options_are_a_view_and_add_up(self):
        manager = self.manager()
        view = manager.options(delay_seconds=0).options(message_group_id="g")
        try:
            view.submit("T", n=0)
        except ClientError as error:
            if "SQSTASKMASTER_TEST_ENDPOINT" not in os.environ:
                raise
            self.skipTest(f"this server has no fair queues: {error}")
        view.submit_many(numbered(1, 1))
        manager.submit("T", n=2)
        groups = {
            n: each.attributes.get("MessageGroupId")
            for each in self.receive_all(manager, 3)
            for n in self.numbers([each])
        }
        self.assertEqual({0: "g", 1: "g", 2: None}, groups)

    def test_a_delayed_message_is_received_no_sooner(self):
        manager = self.manager()
        began = time.monotonic()
        manager.options(delay_seconds=2).submit("T", n=1)
        manager.options(delay_seconds=lambda task, kwargs: kwargs["n"]).submit_many([("T", {"n": 0}), ("T", {"n": 2})])
        self.assertEqual([0], self.numbers(manager.queue.receive_messages(MaxNumberOfMessages=10, WaitTimeSeconds=0)))
        self.assertEqual("2", str(manager.attributes()["ApproximateNumberOfMessagesDelayed"]))
        self.assertEqual(0, self.depth(manager))
        received = self.receive_all(manager, 2)
        self.assertLess(1.9, time.monotonic() - began)
        self.assertEqual([1, 2], sorted(self.numbers(received)))

    def test_a_purge_drops_delayed_messages_too(self):
        manager = self.manager()
        manager.options(delay_seconds=900).submit("T")
        manager.purge()
        self.assertEqual("0", str(manager.attributes()["ApproximateNumberOfMessagesDelayed"]))

    def test_a_fifo_queue_needs_a_message_group(self):
        manager = self.manager(fifo=True)
        tasks = iter(numbered(1))
        with self.assertRaisesRegex(ValueError, "FIFO queue needs a message group"):
            manager.submit("T")
        with self.assertRaisesRegex(ValueError, "FIFO queue needs a message group"):
            manager.submit_many(tasks)
        with self.assertRaises(TasksNotSent):
            manager.options(message_group_id=lambda task, kwargs: None).submit_many(numbered(1))
        with self.assertRaisesRegex(ValueError, "no delay for single messages of a FIFO"):
            manager.options(delay_seconds=1, message_group_id="g")
        with self.assertRaisesRegex(ValueError, "for many tasks"):
            manager.options(message_group_id="g", message_deduplication_id="same").submit_many(tasks)
        self.assertEqual(1, len(list(tasks)))
        self.assertEqual(0, self.depth(manager))

    def test_a_fifo_queue_keeps_the_order_of_each_group_end_to_end(self):
        manager = self.manager(fifo=True).options(message_group_id=lambda task, kwargs: f"g{kwargs['n'] % 3}")
        self.assertEqual(30, manager.submit_many(numbered(30)).sent)
        received = []
        generator = manager.task_generator(wait_time=1)
        while len(received) < 30:
            _, kwargs, message = next(generator)
            received.append((message.attributes["MessageGroupId"], kwargs["n"]))
            message.delete()
        for group in range(3):
            numbers = [number for each, number in received if each == f"g{group}"]
            self.assertEqual(list(range(group, 30, 3)), numbers)

    def test_a_fifo_queue_drops_what_has_a_deduplication_id_it_knows(self):
        manager = self.manager(fifo=True).options(message_group_id="g")
        by_id = manager.options(message_deduplication_id=lambda task, kwargs: f"id-{kwargs['n'] % 5}")
        self.assertEqual(5, by_id.submit_many(numbered(5)).sent)
        self.assertEqual(5, by_id.submit_many(numbered(5, 5)).sent)
        self.assertEqual(list(range(5)), self.numbers(self.receive_all(manager, 5)))

    def test_a_request_that_is_wrong_as_a_whole_is_refused(self):
        queue = self.manager().queue
        entry = {"Id": "1", "MessageBody": "x"}
        for code, entries in {
            "EmptyBatchRequest": [],
            "TooManyEntriesInBatchRequest": [{**entry, "Id": str(number)} for number in range(11)],
            "BatchEntryIdsNotDistinct": [entry, entry],
            "BatchRequestTooLong": [entry, {"Id": "2", "MessageBody": "x" * MIB}],
        }.items():
            with self.subTest(code), self.assertRaises(ClientError) as refused:
                queue.send_messages(Entries=entries)
            self.assertTrue(refused.exception.response["Error"]["Code"].endswith(code))

    def test_message_attributes_come_when_they_are_asked_for(self):
        manager = self.manager(sender_name="me")
        manager.submit("T")
        _, _, message = next(manager.task_generator(wait_time=1, message_attribute_names=["All"]))
        self.assertEqual("me", message.message_attributes["service_name"]["StringValue"])
        for wrong in ("All", [5], 5, [""]):
            with self.subTest(wrong), self.assertRaisesRegex(TypeError, "message_attribute_names must be names"):
                manager.task_generator(message_attribute_names=wrong)


class LocalQueueProducingLaws(ProducingLaws, unittest.TestCase):
    constructor = LocalQueue

    def new_url(self, fifo=False):
        url = f"local://queue/{uuid.uuid4().hex}" + (".fifo" if fifo else "")
        self.addCleanup(LocalQueue.local_queues.pop, url, None)
        return url

    def test_an_entry_that_is_wrong_by_itself_fails_by_itself(self):
        queue = LocalQueue(self.new_url())
        answer = queue.send_messages(
            Entries=[{"Id": "a", "MessageBody": "x"}, {"Id": "b", "MessageBody": "x", "DelaySeconds": 901}]
        )
        self.assertEqual(
            (["a"], ["b"]), tuple([each["Id"] for each in answer[key]] for key in ("Successful", "Failed"))
        )
        self.assertTrue(answer["Failed"][0]["SenderFault"])
        self.assertEqual(1, queue.attributes["ApproximateNumberOfMessages"])


class ServerProducingLaws(ProducingLaws, ServerTestCase):
    def new_url(self, fifo=False):
        return self.create_queue(**({"FifoQueue": "true", "ContentBasedDeduplication": "true"} if fifo else {}))


class ThroughProxyTest(ServerTestCase):
    """What goes wrong on the way, forced by a proxy; the client is boto3's own, with one try for each request."""

    def setUp(self):
        super().setUp()
        for name, value in (("_PAUSE_SECONDS", 0.001), ("_LONGEST_PAUSE_SECONDS", 0.01)):
            patched = mock.patch.object(sending, name, value)
            patched.start()
            self.addCleanup(patched.stop)

    def through(self, rule, fifo=False):
        """A manager on a new queue, and the proxy before it."""
        self.proxy = Proxy(self, endpoint(), rule)
        attributes = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if fifo else {}
        self.url = self.create_queue(**attributes)
        os.environ["AWS_ENDPOINT_URL"] = self.proxy.url
        os.environ["AWS_MAX_ATTEMPTS"] = "1"
        boto3.DEFAULT_SESSION = session()
        return TaskManager(self.url)

    def received(self, number):
        """The numbers of the tasks in the queue, `number` of them, in the order of receiving."""
        found = []

        def poll():
            for message in self.receive(self.url, wait=1):
                found.append(json.loads(message["Body"])["kwargs"]["n"])
                self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
            return len(found) >= number

        wait_until(poll, f"{number} messages are received")
        self.assertEqual([], self.receive(self.url))
        self.assertEqual(number, len(found))
        return found

    def sizes(self):
        return [request.size for request in self.proxy.requests]

    def test_requests_are_as_full_as_they_may_be(self):
        manager = self.through(lambda request: request.forward())
        manager.submit_many(numbered(35))
        self.assertEqual([5, 10, 10, 10], sorted(self.sizes()))
        self.assertEqual({"SendMessageBatch"}, {request.operation for request in self.proxy.requests})

    def test_a_request_holds_at_most_a_mebibyte(self):
        sizes = []

        def rule(request):
            sizes.append(sum(len(entry["MessageBody"]) for entry in request.content["Entries"]))
            successful = [
                {"Id": each["Id"], "MessageId": each["Id"], "MD5OfMessageBody": md5(each["MessageBody"])}
                for each in request.content["Entries"]
            ]
            return 200, {"Successful": successful}

        manager = self.through(rule)
        self.assertEqual(9, manager.submit_many(("T", {"data": "x" * (MIB // 4)}) for _ in range(9)).sent)
        self.assertEqual(3, len(sizes))
        self.assertLess(max(sizes), MIB)

    def test_entries_that_fail_without_sender_fault_are_sent_again_and_only_those(self):
        seen = set()

        def once(task, kwargs):
            new = kwargs["n"] % 4 == 1 and kwargs["n"] not in seen
            seen.add(kwargs["n"])
            return new

        manager = self.through(lambda request: request.forward_all_but(once))
        result = manager.submit_many(numbered(20), threads=1)
        self.assertEqual((20, 0), (result.sent, result.failed))
        self.assertTrue(all(result.message_ids))
        self.assertEqual(list(range(20)), sorted(self.received(20)))
        self.assertEqual([2, 3, 10, 10], sorted(self.sizes()))

    def test_entries_that_fail_by_sender_fault_are_listed_and_not_sent_again(self):
        manager = self.through(
            lambda request: request.forward_all_but(
                lambda task, kwargs: kwargs["n"] == 4, "InvalidMessageContents", True
            )
        )
        with self.assertRaises(TasksNotSent) as raised:
            manager.submit_many(numbered(12))
        [failure] = raised.exception.failures
        self.assertEqual((4, "T", {"n": 4}, "InvalidMessageContents", "forced"), tuple(vars(failure).values()))
        self.assertEqual(11, len(self.received(11)))
        self.assertEqual(2, len(self.proxy.requests))

    def test_an_entry_that_never_gets_through_is_given_up_and_says_how_often_it_was_tried(self):
        manager = self.through(lambda request: request.forward_all_but(lambda task, kwargs: kwargs["n"] == 4))
        with self.assertRaises(TasksNotSent) as raised:
            manager.submit_many(numbered(12))
        [failure] = raised.exception.failures
        self.assertEqual((4, "InternalError"), (failure.index, failure.code))
        self.assertRegex(failure.reason, r"forced \(given up after 10 tries in \d+\.\d s\)")
        self.proxy.rule = lambda request: request.forward()
        self.assertEqual(1, manager.submit_many(raised.exception).sent)
        self.assertEqual(list(range(12)), sorted(self.received(12)))

    def test_throttling_faults_of_the_service_and_cut_connections_are_tried_again(self):
        def cut():
            raise Cut

        troubles = {
            "throttled": lambda: error(400, "ThrottlingException"),
            "throttled by its older name": lambda: error(403, "RequestThrottled"),
            "too many": lambda: error(429, "Unheard"),
            "a fault": lambda: error(500, "InternalFailure"),
            "a fault of a gateway": lambda: error(502, "Unheard"),
            "out of service": lambda: error(503, "ServiceUnavailable"),
            "cut": cut,
        }
        for name, trouble in troubles.items():
            with self.subTest(name):
                manager = self.through(lambda request: trouble() if request.number % 2 else request.forward())
                self.assertEqual(25, manager.submit_many(numbered(25), threads=2).sent)
                self.assertEqual(list(range(25)), sorted(self.received(25)))

    def test_an_answer_that_is_lost_makes_duplicates_on_a_standard_queue_only(self):
        def rule(request):
            answer = request.forward()
            if request.number == 1:
                raise Cut
            return answer

        for fifo in (False, True):
            with self.subTest(fifo=fifo):
                manager = self.through(rule, fifo)
                if fifo:
                    manager = manager.options(message_group_id=lambda task, kwargs: str(kwargs["n"]))
                self.assertEqual(10, manager.submit_many(numbered(10)).sent)
                self.assertEqual(2, len(self.proxy.requests))
                expected = sorted(list(range(10)) * (1 if fifo else 2))
                self.assertEqual(expected, sorted(self.received(len(expected))))

    def test_a_request_refused_as_a_whole_is_taken_apart(self):
        def rule(request):
            if any(body["kwargs"]["n"] == 6 for body in request.bodies):
                return error(400, "InvalidMessageContents" if len(request.bodies) == 1 else "BatchRequestTooLong")
            return request.forward()

        manager = self.through(rule)
        with self.assertRaises(TasksNotSent) as raised:
            manager.submit_many(numbered(20))
        self.assertEqual(
            [(6, "InvalidMessageContents")], [(each.index, each.code) for each in raised.exception.failures]
        )
        self.assertEqual(19, len(self.received(19)))

    def test_entries_that_an_answer_leaves_out_are_not_taken_for_sent(self):
        def rule(request):
            body = request.content["Entries"][0]["MessageBody"]
            return 200, {"Successful": [{"Id": "0", "MessageId": "m", "MD5OfMessageBody": md5(body)}]}

        manager = self.through(rule)
        with self.assertRaises(TasksNotSent) as raised, mock.patch.object(sending, "_TRIES", 1):
            manager.submit_many(numbered(3))
        self.assertEqual(
            [(1, "NoAnswer"), (2, "NoAnswer")], [(each.index, each.code) for each in raised.exception.failures]
        )

    def test_where_nothing_gets_through_the_rest_is_listed_without_being_tried(self):
        manager = self.through(lambda request: error(403, "AccessDenied"))
        with self.assertRaises(TasksNotSent) as raised:
            manager.submit_many(iter(numbered(500)), threads=1)
        self.assertEqual(8, len(self.proxy.requests))
        codes = [failure.code for failure in raised.exception.failures]
        self.assertEqual(["AccessDenied"] * 80 + ["NotTried"] * 420, codes)
        self.assertIn("AccessDenied", raised.exception.failures[-1].reason)
        self.assertEqual(numbered(500), list(raised.exception))

    def test_a_key_that_may_not_be_used_is_no_fault_of_the_single_message(self):
        """AWS's own answer: the code of the query protocol in a header, which botocore takes for the code."""

        def rule(request):
            body = {"__type": "com.amazonaws.sqs#KmsAccessDenied", "message": "no"}
            headers = {"Content-Type": "application/x-amz-json-1.0"}
            headers["x-amzn-query-error"] = "KMS.AccessDeniedException;Sender"
            return Raw(400, json.dumps(body).encode(), headers)

        manager = self.through(rule)
        with self.assertRaises(TasksNotSent) as raised:
            manager.submit_many(iter(numbered(500)), threads=1)
        self.assertEqual(8, len(self.proxy.requests))
        self.assertEqual({"KmsAccessDenied", "NotTried"}, {failure.code for failure in raised.exception.failures})

    def test_with_too_many_failures_no_more_is_taken_and_the_error_has_the_rest(self):
        manager = self.through(lambda request: error(403, "AccessDenied"))
        with self.assertRaises(TasksNotSent) as raised, mock.patch.object(sending, "_MOST_FAILURES", 200):
            manager.submit_many(iter(numbered(500)), threads=1)
        self.assertEqual(200, len(raised.exception.failures))
        self.assertEqual(numbered(500), list(raised.exception))

    def test_a_fifo_group_keeps_its_order_through_failures_of_entries(self):
        tried = {}

        def now_and_then(task, kwargs):
            tried[kwargs["n"]] = tried.get(kwargs["n"], 0) + 1
            return kwargs["n"] % 3 == 0 and tried[kwargs["n"]] <= 2

        manager = self.through(lambda request: request.forward_all_but(now_and_then), fifo=True)
        manager = manager.options(message_group_id=lambda task, kwargs: f"g{kwargs['n'] % 4}")
        self.assertEqual(32, manager.submit_many(numbered(32), threads=4).sent)
        received = self.received(32)
        for group in range(4):
            self.assertEqual(list(range(group, 32, 4)), [number for number in received if number % 4 == group])

    def test_what_follows_a_given_up_task_in_its_fifo_group_is_held_back(self):
        manager = self.through(
            lambda request: request.forward_all_but(lambda task, kwargs: kwargs["n"] == 6), fifo=True
        )
        manager = manager.options(message_group_id=lambda task, kwargs: f"g{kwargs['n'] % 2}")
        with self.assertRaises(TasksNotSent) as raised, mock.patch.object(sending, "_TRIES", 2):
            manager.submit_many(numbered(14))
        codes = {failure.index: failure.code for failure in raised.exception.failures}
        self.assertEqual({6: "InternalError", 8: "HeldBack", 10: "HeldBack", 12: "HeldBack"}, codes)
        self.assertIn("task 6 of the same message group", raised.exception.failures[1].reason)
        self.proxy.rule = lambda request: request.forward()
        manager.submit_many(raised.exception)
        received = self.received(14)
        for group in range(2):
            self.assertEqual(list(range(group, 14, 2)), [number for number in received if number % 2 == group])

    def test_what_sqs_refuses_for_good_holds_nothing_back(self):
        def refused(request):
            return request.forward_all_but(lambda task, kwargs: kwargs["n"] == 2, "Invalid", True)

        manager = self.through(refused, fifo=True).options(message_group_id="g")
        with self.assertRaises(TasksNotSent) as raised:
            manager.submit_many(numbered(5))
        self.assertEqual([2], [failure.index for failure in raised.exception.failures])
        self.assertEqual([0, 1, 3, 4], self.received(4))

    def test_an_interrupt_waits_for_the_answers_and_says_what_was_sent(self):
        def rule(request):
            if request.number == 2:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return request.forward()

        manager = self.through(rule)
        with self.assertRaises(SubmitInterrupted) as raised, self.assertLogs("sqstaskmaster", "WARNING") as logs:
            manager.submit_many(iter(numbered(5000)), threads=1)
        error = raised.exception
        self.assertIsInstance(error, KeyboardInterrupt)
        self.assertLessEqual(20, error.result.sent)
        self.assertIn(f"Interrupted: {error.result.sent} of the {error.result.taken} tasks", str(error))
        self.assertIn(f"sent={error.result.sent}", logs.output[0])
        self.assertEqual({"Interrupted"}, {failure.code for failure in error.failures})
        sent = self.received(error.result.sent)
        self.assertEqual(list(range(5000)), sorted(sent + [kwargs["n"] for _, kwargs in error]))

    def test_what_an_interrupt_leaves_unanswered_is_listed_as_unknown(self):
        release = threading.Event()
        self.addCleanup(release.set)

        def rule(request):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            release.wait(30)
            return request.forward()

        manager = self.through(rule)
        with mock.patch.object(sending, "_INTERRUPT_SECONDS", 0.2), self.assertLogs("sqstaskmaster", "WARNING"):
            with self.assertRaises(SubmitInterrupted) as raised:
                manager.submit_many(iter(numbered(500)), threads=1)
        codes = [failure.code for failure in raised.exception.failures]
        self.assertEqual(["Unknown"] * 10, codes[:10])
        self.assertEqual({"Interrupted"}, set(codes[10:]))
        self.assertEqual(numbered(500), list(raised.exception))

    def test_threads_are_added_where_the_network_is_slow_and_no_more_than_allowed(self):
        together = threading.Barrier(4, timeout=30)

        def rule(request):
            if request.number <= 8:
                together.wait()  # no answer before four requests are under way at a time
            return request.forward()

        manager = self.through(rule)
        self.assertEqual(80, manager.submit_many(numbered(80), threads=4).sent)
        self.assertFalse(together.broken)

    def test_the_trace_of_the_caller_goes_on_in_the_sender_and_arrives(self):
        """As instrumentation does it: reads a context variable, and adds message attributes to what is sent."""
        trace = contextvars.ContextVar("trace", default="none")
        manager = self.through(lambda request: request.forward())

        def inject(params, **_):
            for entry in params.get("Entries", [params]):
                self.assertNotIn("traceparent", entry["MessageAttributes"])
                entry["MessageAttributes"]["traceparent"] = {"StringValue": trace.get(), "DataType": "String"}

        def ask(params, **_):
            params.setdefault("MessageAttributeNames", []).append("traceparent")

        events = manager.queue.meta.client.meta.events
        for operation in ("SendMessage", "SendMessageBatch"):
            events.register(f"provide-client-params.sqs.{operation}", inject)
        events.register("provide-client-params.sqs.ReceiveMessage", ask)
        trace.set("00-abc-def-01")
        manager.submit_many(numbered(12))
        manager.submit("T", n=12)
        names = ["service_name"]
        generator = manager.task_generator(wait_time=1, message_attribute_names=names)
        for _ in range(13):
            _, _, message = next(generator)
            self.assertEqual("00-abc-def-01", message.message_attributes["traceparent"]["StringValue"])
            self.assertIn("service_name", message.message_attributes)
        self.assertEqual(["service_name"], names)
        polls = [each for each in self.proxy.requests if each.operation == "ReceiveMessage"]
        self.assertEqual(["service_name", "traceparent"], polls[-1].content["MessageAttributeNames"])


class SentOnly:
    """A queue of a user's own making that sends one message at a time."""

    def __init__(self, url):
        self.url = url
        self.sent = []
        self.attributes = {}
        self.load = self.purge = self.receive_messages = lambda **_: None

    def send_message(self, **kwargs):
        if '"n": 7}' in kwargs["MessageBody"]:
            raise RuntimeError("seven is not to be sent")
        self.sent.append(kwargs)
        return {"MessageId": str(len(self.sent))}


class Sink(SentOnly):
    """A queue that keeps nothing; `ahead` is the most tasks that were taken and not yet sent."""

    def __init__(self, url):
        super().__init__(url)
        self.taken = self.count = self.ahead = 0

    def tasks(self, number):
        for self.taken in range(1, number + 1):
            self.ahead = max(self.ahead, self.taken - self.count)
            yield "T", {"n": self.taken, "data": "x" * 1000}

    def send_messages(self, Entries):
        self.count += len(Entries)
        return {"Successful": [{"Id": each["Id"], "MessageId": str(uuid.uuid4())} for each in Entries]}


class OwnQueueTest(unittest.TestCase):
    def test_a_queue_that_sends_one_message_at_a_time_serves(self):
        manager = TaskManager("own://queue", queue_constructor=SentOnly)
        with self.assertRaises(TasksNotSent) as raised:
            manager.submit_many(numbered(40))
        [failure] = raised.exception.failures
        self.assertEqual((7, "RuntimeError", "seven is not to be sent"), (failure.index, failure.code, failure.reason))
        self.assertEqual({"MessageBody", "MessageAttributes"}, set().union(*manager.queue.sent))
        self.assertEqual(39, len(manager.queue.sent))

    def test_a_generator_is_taken_little_further_than_what_is_sent_and_memory_stays_flat(self):
        manager = TaskManager("own://queue", queue_constructor=Sink)
        manager.submit_many(manager.queue.tasks(1000))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        result = manager.submit_many(manager.queue.tasks(20_000))
        peak = tracemalloc.get_traced_memory()[1]
        self.assertEqual(20_000, result.sent)
        self.assertLess(peak, 2 * MIB)  # the tasks are 20 MB
        self.assertLessEqual(manager.queue.ahead, 8 * 50)

    def submit_with_threads(self, number):
        """Send where the system has so many threads to give; the queue answers once it has refused one."""
        start, started, refused = threading.Thread.start, [], threading.Event()

        def start_or_refuse(thread):
            if len(started) >= number:
                refused.set()
                raise RuntimeError("can't start new thread")
            started.append(thread)
            start(thread)

        class Slow(Sink):
            def send_messages(self, Entries):
                refused.wait(DEADLINE_SECONDS)
                return super().send_messages(Entries)

        manager = TaskManager("own://queue", queue_constructor=Slow)
        with mock.patch.object(threading.Thread, "start", start_or_refuse):
            return manager.submit_many(numbered(1000))

    def test_with_fewer_threads_than_wanted_all_is_sent(self):
        with self.assertLogs("sqstaskmaster", "WARNING") as logs:
            self.assertEqual(1000, self.submit_with_threads(1).sent)
        self.assertIn("No further thread can be started", logs.output[0])

    def test_without_any_thread_to_be_had_the_callers_sends_all(self):
        with self.assertLogs("sqstaskmaster", "WARNING") as logs:
            self.assertEqual(1000, self.submit_with_threads(0).sent)
        self.assertEqual(1, len(logs.output))

    def test_at_the_end_of_the_interpreter_all_is_sent(self):
        script = """
import atexit
from sqstaskmaster import LocalQueue, TaskManager
manager = TaskManager("local", queue_constructor=LocalQueue)
atexit.register(lambda: print(manager.submit_many([("T", {"n": n}) for n in range(100)]).sent))
"""
        printed = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=True).stdout
        self.assertEqual("100", printed.decode().strip())

    def test_the_threads_are_gone_when_all_is_sent(self):
        before = threading.active_count()
        TaskManager("own://queue", queue_constructor=Sink).submit_many(numbered(100))
        self.assertEqual(before, threading.active_count())


class SendTimeoutTest(ServerTestCase):
    """How long one `submit` may take. The clock is real: what is tested is how long a web request would be held."""

    def setUp(self):
        super().setUp()
        patch = mock.patch.dict(os.environ, AWS_RETRY_MODE="standard", AWS_MAX_ATTEMPTS="20")
        patch.start()
        self.addCleanup(patch.stop)
        self.url = self.create_queue()

    def failed_within(self, seconds, fault, send_timeout):
        proxy = Faulty(self, endpoint(), "SendMessage", fault)
        with mock.patch.dict(os.environ, AWS_ENDPOINT_URL=proxy.url):
            manager = TaskManager(self.url, send_timeout=send_timeout)
            began = time.monotonic()
            with self.assertRaises((ClientError, BotoCoreError)) as raised:
                manager.submit("T")
            self.assertLess(time.monotonic() - began, seconds)
        return proxy.met, raised.exception

    def test_a_server_that_never_answers_holds_it_for_no_longer(self):
        met, error = self.failed_within(4, "silence", 2)
        self.assertIsInstance(error, ReadTimeoutError)
        self.assertEqual(1, met)

    def test_tries_that_fail_at_once_go_on_for_as_long_as_another_could_end_in_time(self):
        met, error = self.failed_within(8, "503", 2)
        self.assertGreater(met, 1)
        self.assertLess(met, 20)
        self.assertEqual(503, error.response["ResponseMetadata"]["HTTPStatusCode"])

    def test_what_recovers_in_time_is_sent(self):
        proxy = Faulty(self, endpoint(), "SendMessage", "503", times=2)
        with mock.patch.dict(os.environ, AWS_ENDPOINT_URL=proxy.url):
            TaskManager(self.url).submit("T")
        self.assertEqual(1, len(self.receive(self.url)))

    def test_by_default_it_is_half_a_minute(self):
        config = TaskManager(self.url).queue.meta.client.meta.config
        self.assertEqual(30, config.connect_timeout + config.read_timeout)

    def test_a_poll_waits_for_its_answer_all_the_same(self):
        manager = TaskManager(self.url, send_timeout=0.5)
        began = time.monotonic()
        self.assertEqual([], manager.receive(2, 30))
        self.assertGreater(time.monotonic() - began, 1.5)
        self.assertGreater(manager._connection.queue_to_poll().meta.client.meta.config.read_timeout, 20)
        manager.submit("T")
        self.assertEqual(1, len(manager.receive(0, 30)))

    def test_a_queue_that_somebody_put_in_its_place_is_polled(self):
        manager = TaskManager(self.url, send_timeout=0.5)
        manager.queue = boto3.resource("sqs").Queue(self.url)
        self.assertIs(manager.queue, manager._connection.queue_to_poll())

    def test_what_is_no_time_is_refused(self):
        for wrong in (0, -1, "30", None, True, float("nan"), float("inf")):
            with self.subTest(wrong), self.assertRaisesRegex(ValueError, "send_timeout .* more than 0"):
                TaskManager(self.url, send_timeout=wrong)


if __name__ == "__main__":
    unittest.main()
