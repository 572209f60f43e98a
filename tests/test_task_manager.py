"""TaskManager: what it refuses, what exactly it asks of a queue, and what it says when the configuration is wanting."""

import copy
import inspect
import os
import pickle
import unittest
from unittest import mock

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.loaders import create_loader

from sqstaskmaster import task_manager
from sqstaskmaster._claim import clock, note
from sqstaskmaster._isolation import child as isolation
from sqstaskmaster._sqs.regions import is_of_aws, region_of
from sqstaskmaster.errors import ConfigurationError, InvalidTask, MessageTooLarge, SQSTaskMasterError
from sqstaskmaster.local import LocalMessage, LocalQueue
from sqstaskmaster.task_manager import TaskManager
from sqstaskmaster.testing import SimulatedQueue
from tests.support import DEADLINE_SECONDS, ServerTestCase

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/name"
ATTRIBUTES = {"ApproximateReceiveCount": "3", "SentTimestamp": "1700000000000"}


class Recorder:
    """A queue that notes every call, and answers with what it was given. What is given as an exception is raised."""

    def __init__(self, *polls):
        self.polls = list(polls)
        self.calls = []
        self.attributes = {"QueueArn": "arn"}

    def send_message(self, **kwargs):
        self.calls.append(("send_message", kwargs))
        return {"MessageId": "1", "MD5OfMessageBody": "2"}

    def receive_messages(self, **kwargs):
        self.calls.append(("receive_messages", kwargs))
        answer = self.polls.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def load(self):
        self.calls.append(("load", {}))

    def purge(self):
        self.calls.append(("purge", {}))


def message(body='{"task": "T", "kwargs": {"x": 1}}', attributes=ATTRIBUTES):
    return LocalMessage(body, attributes)


def manager_of(*polls, notify=None, **options):
    return TaskManager(URL, notify, lambda url: Recorder(*polls), **options)


class ConstructorTest(unittest.TestCase):
    def test_a_fifo_queue_without_a_deduplication_id_is_an_error_that_names_the_option(self):
        manager = TaskManager("memory:dedup.fifo", queue_constructor=SimulatedQueue).options(message_group_id="a")
        self.addCleanup(SimulatedQueue.reset)
        with self.assertRaisesRegex(ClientError, r"options\(message_deduplication_id=\.\.\.\)"):
            manager.submit("A")

    def test_arguments_without_names_are_refused_with_the_call_that_works(self):
        manager = TaskManager("memory:positional", None, LocalQueue)
        with self.assertRaisesRegex(TypeError, r"submit\('A', below=20000\)"):
            manager.submit("A", 20000)

    def test_a_bare_name_and_an_arn_are_refused_with_how_to_get_the_url(self):
        for given, told in (
            ("train.fifo", "'aws sqs get-queue-url --queue-name train.fifo'"),
            (
                "arn:aws:sqs:eu-west-1:123456789012:train",
                "--queue-name train --queue-owner-aws-account-id 123456789012 ",
            ),
        ):
            with self.subTest(given), self.assertRaises(ValueError) as caught:
                TaskManager(given).queue
            self.assertIn(told, str(caught.exception))
            self.assertNotIn("LocalQueue", str(caught.exception))

    def test_its_arguments_are_positional_in_the_classic_order(self):
        names = list(inspect.signature(TaskManager).parameters)
        self.assertEqual(["sqs_url", "notify", "queue_constructor", "sender_name"], names[:4])

    def test_it_has_the_url_the_sender_and_the_queue(self):
        manager = TaskManager(URL, None, LocalQueue, "me")
        self.assertEqual((URL, "me", URL), (manager.url, manager.sender_name, manager.queue.url))
        self.assertIsInstance(manager.queue, LocalQueue)
        self.assertIsNone(TaskManager(URL, queue_constructor=LocalQueue).sender_name)

    def test_any_callable_that_gives_a_queue_is_a_queue_constructor(self):
        queue = Recorder()
        asked = []

        class Factory:
            def __call__(self, url):
                asked.append(url)
                return queue

            def method(self, url):
                return self(url)

        for constructor in (Factory(), Factory().method, lambda url: Factory()(url), lambda *all: Factory()(*all)):
            self.assertIs(queue, TaskManager(URL, queue_constructor=constructor).queue)
        self.assertEqual([URL] * 4, asked)

    def test_anything_else_is_a_type_error_that_says_what_to_give(self):
        class NoQueue:
            def __init__(self, url):
                pass

        class TakesNothing:
            pass

        wrong = (object, object(), int, dict, str, range, "LocalQueue", 5, True, LocalQueue("u"), NoQueue, TakesNothing)
        wrong += (lambda: Recorder(), lambda url, more: Recorder(), lambda url: None, lambda url: object(), Recorder())
        for constructor in wrong:
            with self.subTest(constructor=constructor), self.assertRaises(TypeError) as refusal:
                TaskManager(URL, queue_constructor=constructor)
            self.assertTrue(str(refusal.exception).startswith("TaskManager invalid queue_constructor type"))
            self.assertIn("give LocalQueue, or a callable", str(refusal.exception))

    def test_an_error_from_within_a_queue_constructor_is_not_replaced(self):
        for error in (TypeError("theirs"), ValueError("theirs"), KeyError("theirs")):

            def constructor(url, error=error):
                raise error

            with self.assertRaises(type(error)) as raised:
                TaskManager(URL, queue_constructor=constructor)
            self.assertIs(error, raised.exception)

    def test_a_url_that_is_none_is_refused(self):
        for url in ("", None, 5, b"https://sqs.eu-west-1.amazonaws.com/1/n"):
            for constructor in (None, LocalQueue):
                with self.subTest(url=url), self.assertRaisesRegex(ValueError, "queue URL must be a non-empty string"):
                    TaskManager(url, queue_constructor=constructor)
        wrong = ("name", "local://queue", "ftp://host/1/n", "http://", "https:///1/n", "https://host", "https://host/")
        wrong += ("arn:aws:sqs:eu-west-1:123456789012:name", "http://[::1/1/n", f"{URL}\n", f" {URL}", f"{URL} x")
        for url in wrong:
            with self.subTest(url=url), self.assertRaises(ValueError) as refusal:
                TaskManager(url)
            self.assertIn(repr(url), str(refusal.exception))
            self.assertIn("https://sqs.eu-west-1.amazonaws.com/123456789012/name", str(refusal.exception))

    def test_a_sender_that_is_no_name_is_refused(self):
        for sender in ("", 5, b"me", "bell\x07", "\ud800"):
            with self.subTest(sender=sender), self.assertRaisesRegex(ValueError, "sender name"):
                TaskManager(URL, None, LocalQueue, sender)


class ConfigurationTest(unittest.TestCase):
    """Region and credentials. Nothing is sent: making a queue asks nothing of AWS, and there are no credentials."""

    def setUp(self):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        environ.update(nowhere, AWS_EC2_METADATA_DISABLED="true")
        patched = mock.patch.dict(os.environ, environ, clear=True)
        patched.start()
        self.addCleanup(patched.stop)
        self.forget()
        self.addCleanup(self.forget)

    def forget(self):
        # boto3 keeps one default session, which keeps what it once read of the environment.
        boto3.DEFAULT_SESSION = None

    def region(self, url):
        return TaskManager(url).queue.meta.client.meta.region_name

    def test_the_region_in_the_url_holds_against_another_in_the_environment(self):
        os.environ["AWS_DEFAULT_REGION"] = "us-west-2"
        self.assertEqual("eu-west-1", self.region(URL))
        client = TaskManager(URL).queue.meta.client
        self.assertEqual("https://sqs.eu-west-1.amazonaws.com", client.meta.endpoint_url)

    def test_a_url_without_a_region_takes_the_one_of_the_environment(self):
        os.environ["AWS_DEFAULT_REGION"] = "us-west-2"
        self.assertEqual("us-west-2", self.region("http://127.0.0.1:5000/123456789012/name"))

    def test_the_region_is_found_in_every_form_of_queue_url(self):
        forms = {
            "https://sqs.eu-west-1.amazonaws.com/1/n": "eu-west-1",
            "https://SQS.EU-West-1.amazonaws.com/1/n": "eu-west-1",
            "https://sqs.us-gov-west-1.amazonaws.com/1/n": "us-gov-west-1",
            "https://sqs.cn-north-1.amazonaws.com.cn/1/n": "cn-north-1",
            "https://sqs-fips.us-east-1.amazonaws.com/1/n": "us-east-1",
            "https://vpce-0a1b-2c3d.sqs.us-east-1.vpce.amazonaws.com/1/n": "us-east-1",
            "https://ap-southeast-2.queue.amazonaws.com/1/n": "ap-southeast-2",
            "https://queue.amazonaws.com/1/n": "us-east-1",
            "https://sqs.eu-west-1.amazonaws.com:443/1/n": "eu-west-1",
            "https://sqs.us-east-2.api.aws/1/n": "us-east-2",
            "https://sqs-fips.us-east-2.api.aws/1/n": "us-east-2",
            "https://sqs.cn-north-1.api.amazonwebservices.com.cn/1/n": "cn-north-1",
            "https://sqs.us-iso-east-1.c2s.ic.gov/1/n": "us-iso-east-1",
            "https://sqs.us-isob-east-1.sc2s.sgov.gov/1/n": "us-isob-east-1",
            "https://sqs.us-east-1.apiaws/1/n": None,
            "https://sqs.us-east-1.example.aws/1/n": None,
            "http://127.0.0.1:5000/1/n": None,
            "http://localhost:4566/1/n": None,
            "https://sqs.eu-west-1.amazonaws.com.example.org/1/n": None,
            "https://example.org/sqs.eu-west-1.amazonaws.com/n": None,
            "http://sqs.eu-west-1.localhost.localstack.cloud:4566/1/n": None,
        }
        self.assertEqual(forms, {url: region_of(url) for url in forms})

    def test_the_region_is_found_in_the_hosts_of_every_partition_that_botocore_knows(self):
        for partition in create_loader().load_data("partitions")["partitions"]:
            outputs = partition["outputs"]
            for region in set(partition["regions"]) - {f"{partition['id']}-global"}:
                for domain in {outputs["dnsSuffix"], outputs["dualStackDnsSuffix"]}:
                    url = f"https://sqs.{region}.{domain}/1/n"
                    self.assertEqual((region, True), (region_of(url), is_of_aws(url)), url)

    def test_requests_to_a_queue_of_another_partition_stay_there(self):
        """The body, too, would go to the region of the commercial partition that is configured."""
        os.environ["AWS_DEFAULT_REGION"] = "us-west-2"
        for url in (
            "https://sqs.us-iso-east-1.c2s.ic.gov/1/n",
            "https://sqs.cn-north-1.api.amazonwebservices.com.cn/1/n",
        ):
            client = TaskManager(url).queue.meta.client
            self.assertEqual(region_of(url), client.meta.region_name)
            self.assertNotIn("us-west-2", client.meta.endpoint_url)

    def test_a_missing_region_is_one_clear_sentence(self):
        with self.assertRaises(ConfigurationError) as refusal:
            TaskManager("http://127.0.0.1:5000/123456789012/name")
        self.assertRegex(str(refusal.exception), "^No AWS region is configured.*set AWS_DEFAULT_REGION")
        self.assertNotIn("\n", str(refusal.exception))
        self.assertIsInstance(refusal.exception, ValueError)
        self.assertIsInstance(refusal.exception, SQSTaskMasterError)

    def test_missing_credentials_are_one_clear_sentence_in_the_error_botocore_has_for_them(self):
        manager = TaskManager(URL)
        calls = (
            lambda: manager.submit("T"),
            lambda: next(manager.task_generator()),
            manager.attributes,
            manager.purge,
        )
        for call in calls:
            with self.assertRaises(NoCredentialsError) as refusal:
                call()
            self.assertIsInstance(refusal.exception, BotoCoreError)
            self.assertRegex(str(refusal.exception), "^No AWS credentials found: set AWS_ACCESS_KEY_ID.*IAM role$")

    def test_retries_come_from_the_standard_configuration(self):
        os.environ.update(AWS_MAX_ATTEMPTS="7", AWS_RETRY_MODE="standard", AWS_DEFAULT_REGION="us-east-1")
        retries = TaskManager(URL).queue.meta.client.meta.config.retries
        self.assertEqual(("standard", 7), (retries["mode"], retries["total_max_attempts"]))

    def test_the_endpoint_comes_from_the_standard_configuration(self):
        os.environ["AWS_ENDPOINT_URL_SQS"] = "http://127.0.0.1:1"
        self.assertEqual("http://127.0.0.1:1", TaskManager(URL).queue.meta.client.meta.endpoint_url)

    def test_reading_waits_longer_than_the_longest_poll(self):
        self.assertGreater(TaskManager(URL).queue.meta.client.meta.config.read_timeout, 20)


class SubmitTest(unittest.TestCase):
    def test_it_sends_exactly_the_body_and_the_sender(self):
        manager = manager_of(sender_name="me")
        answer = manager.submit("Task", b=1, a="é", when=TaskManager)
        sent = {
            "MessageBody": '{"task": "Task", "kwargs": {"b": 1, "a": "\\u00e9", "when": "%s"}}' % TaskManager,
            "MessageAttributes": {"service_name": {"StringValue": "me", "DataType": "String"}},
        }
        self.assertEqual([("send_message", sent)], manager.queue.calls)
        self.assertEqual({"MessageId": "1", "MD5OfMessageBody": "2"}, answer)

    def test_it_sends_who_to_ask_where_no_sender_is_named(self):
        manager = manager_of()
        manager.submit("Task")
        [(_, sent)] = manager.queue.calls
        self.assertEqual(f"Unknown sender to: {URL}", sent["MessageAttributes"]["service_name"]["StringValue"])
        self.assertEqual('{"task": "Task", "kwargs": {}}', sent["MessageBody"])

    def test_the_task_may_be_named(self):
        manager = manager_of()
        manager.submit(task="Task", message="x", url="y")
        self.assertIn('{"task": "Task", "kwargs": {"message": "x", "url": "y"}}', str(manager.queue.calls))

    def test_what_cannot_be_sent_is_refused_before_anything_is(self):
        manager = manager_of()
        for task in ("", None, 5, b"T", ["T"]):
            with self.subTest(task=task), self.assertRaisesRegex(ValueError, "non-empty string"):
                manager.submit(task)
        with self.assertRaises(InvalidTask):
            manager.submit("T", **{"x": {(1, 2): 3}})
        self.assertEqual([], manager.queue.calls)

    def test_a_message_of_one_mebibyte_is_sent_and_one_byte_more_is_refused_with_its_size(self):
        limit = 1024 * 1024
        manager = manager_of(sender_name="mé")
        around = len('{"task": "T", "kwargs": {"x": ""}}') + len("service_name" "String") + len("mé".encode())
        manager.submit("T", x="." * (limit - around))
        self.assertEqual(1, len(manager.queue.calls))
        with self.assertRaises(MessageTooLarge) as refusal:
            manager.submit("T", x="." * (limit - around + 1))
        self.assertEqual(1, len(manager.queue.calls))
        self.assertEqual(
            (limit + 1, limit, "T"), (refusal.exception.size, refusal.exception.limit, refusal.exception.task)
        )
        self.assertIn("1,048,577 bytes", str(refusal.exception))
        self.assertIn("S3", str(refusal.exception))
        self.assertIsInstance(refusal.exception, ValueError)

    def test_the_size_is_that_of_the_bytes_that_are_sent(self):
        # Every é is six bytes as it is sent.
        with self.assertRaises(MessageTooLarge):
            manager_of().submit("T", x="é" * 180_000)


class AttributesAndPurgeTest(unittest.TestCase):
    def test_attributes_are_loaded_anew_each_time(self):
        manager = manager_of()
        self.assertEqual({"QueueArn": "arn"}, manager.attributes())
        manager.attributes()
        self.assertEqual(["load", "load"], [name for name, _ in manager.queue.calls])

    def test_a_purge_is_one_purge(self):
        manager = manager_of()
        manager.purge()
        self.assertEqual([("purge", {})], manager.queue.calls)


class GeneratorTest(unittest.TestCase):
    def test_each_poll_is_exactly_this(self):
        manager = manager_of([], [message()])
        next(manager.task_generator(wait_time=3, sqs_timeout=44))
        asked = {"AttributeNames": ["All"], "MaxNumberOfMessages": 1, "WaitTimeSeconds": 3, "VisibilityTimeout": 44}
        self.assertEqual([("receive_messages", asked)] * 2, manager.queue.calls)

    def test_the_default_is_a_wait_and_a_claim_of_twenty_seconds(self):
        manager = manager_of([message()])
        next(manager.task_generator())
        [(_, asked)] = manager.queue.calls
        self.assertEqual((20, 20), (asked["WaitTimeSeconds"], asked["VisibilityTimeout"]))

    def test_nothing_is_received_before_the_first_next(self):
        manager = manager_of([message()])
        generator = manager.task_generator()
        self.assertEqual([], manager.queue.calls)
        next(generator)
        generator.close()
        self.assertEqual(1, len(manager.queue.calls))

    def test_a_time_out_of_range_is_refused_at_the_call(self):
        manager = manager_of()
        for wrong in (-1, 21, 0.5, "5", None, True, float("nan"), float("inf"), 10**400):
            with self.subTest(wait_time=wrong), self.assertRaises(ValueError) as refusal:
                manager.task_generator(wait_time=wrong)
            self.assertEqual(
                f"wait_time must be a whole number of seconds from 0 to 20, not {wrong!r}", str(refusal.exception)
            )
        for wrong in (-1, 43201, 0.5, "5", None, False, float("nan"), float("inf"), 10**400):
            with self.subTest(sqs_timeout=wrong), self.assertRaisesRegex(ValueError, "sqs_timeout .* 0 to 43200, not"):
                manager.task_generator(sqs_timeout=wrong)
        self.assertEqual([], manager.queue.calls)

    def test_the_ends_of_the_ranges_are_in_them(self):
        for wait_time, sqs_timeout in ((0, 0), (20, 43200), (5.0, 30.0)):
            manager = manager_of([message()])
            next(manager.task_generator(wait_time, sqs_timeout))
            [(_, asked)] = manager.queue.calls
            times = (asked["WaitTimeSeconds"], asked["VisibilityTimeout"])
            self.assertEqual((wait_time, sqs_timeout), times)
            self.assertEqual([int, int], [type(time) for time in times])

    def test_it_yields_the_task_its_arguments_and_the_message_itself(self):
        first, second = message(), message('{"task": "U", "kwargs": {}}')
        generator = manager_of([first], [], [second]).task_generator()
        self.assertEqual(("T", {"x": 1}, first), next(generator))
        self.assertEqual(("U", {}, second), next(generator))

    def test_a_queue_that_gives_several_at_once_loses_none(self):
        generator = manager_of([message(), message("[1]"), message()]).task_generator()
        with self.assertLogs("sqstaskmaster", "ERROR"):
            self.assertEqual(["T", "T"], [next(generator)[0] for _ in range(2)])

    def test_an_error_of_receiving_is_raised(self):
        refused = ClientError({"Error": {"Code": "AccessDenied"}}, "ReceiveMessage")
        for error in (refused, BotoCoreError(), OSError("theirs"), KeyboardInterrupt()):
            with self.assertRaises(type(error)) as raised:
                next(manager_of(error).task_generator())
            self.assertIs(error, raised.exception)

    def test_the_message_says_when_it_was_asked_for_and_answered_and_for_how_long_it_is_claimed(self):
        received = message()
        with mock.patch.object(clock, "now", side_effect=[100.0, 113.0]):
            next(manager_of([received]).task_generator(wait_time=20, sqs_timeout=60))
        receipt = note.read(received)
        self.assertEqual((100.0, 113.0, 60, "T", False), receipt[:5])
        self.assertEqual(URL, receipt.origin.url)

    def test_a_message_whose_claim_may_have_ended_before_its_poll_was_answered_is_not_run(self):
        for wait, timeout, took, is_run in (
            (20, 30, 20.1, True),
            (20, 30, 29.9, True),
            (20, 30, 30.0, False),
            (20, 20, 20.1, True),  # SQS has just sent it
            (20, 20, 22.0, False),
            (20, 5, 19.0, True),
            (0, 30, 3600.0, False),  # the machine was suspended, say
            (0, 0, 3600.0, True),  # that was no claim
        ):
            with self.subTest(wait=wait, timeout=timeout, took=took):
                queue = [mock.Mock(body='{"task": "T", "kwargs": {}}') for _ in range(2)]
                clocks = mock.patch.object(clock, "now", side_effect=[100.0, 100.0 + took])
                with clocks, mock.patch.object(task_manager.logger, "warning") as said:
                    received = manager_of(queue).receive(wait, timeout, 2)
                self.assertEqual([is_run] * 2, [each is not None for each in received])
                self.assertEqual(int(not is_run), said.call_count)

    def test_the_message_says_whether_it_was_received_with_all_its_message_attributes(self):
        for names, has_all in ((["All"], True), ([".*"], True), (["colour"], False), ([], False)):
            with self.subTest(names):
                received = message()
                next(manager_of([received]).task_generator(message_attribute_names=names))
                self.assertEqual(has_all, note.read(received).has_attributes)

    def test_a_message_that_takes_no_note_is_yielded_all_the_same(self):
        class Closed:
            __slots__ = ("body", "attributes")

        closed = Closed()
        closed.body, closed.attributes = '{"task": "T", "kwargs": {}}', None
        self.assertIs(closed, next(manager_of([closed]).task_generator())[2])


class InterruptedPollTest(unittest.TestCase):
    def test_a_loop_that_is_stopped_during_a_poll_is_told_of_the_message_that_it_may_still_bring(self):
        class Queue(LocalQueue):
            def receive_messages(self, **kwargs):
                raise KeyboardInterrupt

        tasks = TaskManager("memory:interrupted", queue_constructor=Queue).task_generator(sqs_timeout=17)
        with self.assertLogs("sqstaskmaster.task_manager", "WARNING") as logs, self.assertRaises(KeyboardInterrupt):
            next(tasks)
        self.assertEqual("poll_interrupted", logs.records[0].action)
        self.assertIn("hidden for 17 s", logs.output[0])


class MalformedTest(unittest.TestCase):
    def refuse(self, received, notify):
        manager = manager_of([received], [message()], notify=notify)
        with self.assertLogs("sqstaskmaster.task_manager", "ERROR") as logs:
            self.assertEqual("T", next(manager.task_generator())[0])
        return logs.records

    def test_it_is_notified_with_its_body_and_attributes_and_logged_with_its_traceback(self):
        told = []
        received = message("[1]")
        [record] = self.refuse(received, lambda exception, context: told.append((exception, context)))
        [(exception, context)] = told
        self.assertIsInstance(exception, ValueError)
        self.assertEqual({"body": "[1]", **ATTRIBUTES}, context)
        self.assertIs(exception, record.exc_info[1])
        self.assertEqual("malformed", record.action)

    def test_it_is_neither_deleted_nor_given_back(self):
        received = message("[1]")
        self.refuse(received, None)
        self.assertEqual((False, []), (received.deleted, received.visibility_changes))

    def test_its_body_is_not_logged(self):
        for body in ('{"secret": 1}', "secret", '"secret"', '{"task": ["secret"], "kwargs": {}}', '["secret"'):
            for record in self.refuse(message(body), None):
                self.assertNotIn("secret", record.getMessage() + str(record.exc_info[1]))

    def test_attributes_of_none_break_nothing(self):
        """Defect 10: the report was broken by a message without attributes."""
        told = []
        self.refuse(message("[1]", None), lambda exception, context: told.append(context))
        self.assertEqual([{"body": "[1]"}], told)

    def test_a_notify_that_raises_is_logged_and_hides_nothing(self):
        """Defect 10: a notify that raised ended the loop and hid the error."""

        def notify(exception, context):
            raise OSError("no network")

        malformed, failed = self.refuse(message("[1]"), notify)
        self.assertEqual(("malformed", "notify_failed"), (malformed.action, failed.action))
        self.assertIsInstance(failed.exc_info[1], OSError)

    def test_a_subclass_is_told_through_its_own_notify(self):
        told = []

        class Own(TaskManager):
            def notify(self, exception, context=None):
                told.append(context["body"])

        manager = Own(URL, None, lambda url: Recorder([message("[1]")], [message()]))
        with self.assertLogs("sqstaskmaster", "ERROR"):
            next(manager.task_generator())
        self.assertEqual(["[1]"], told)


class NotifyTest(unittest.TestCase):
    def test_it_is_called_with_the_exception_and_the_context_by_name(self):
        notify = mock.Mock()
        error = ValueError()
        manager = manager_of(notify=notify)
        manager.notify(error)
        manager.notify(error, {"a": 1})
        manager.notify(error, context={"b": 2})
        calls = [mock.call(error, context=context) for context in (None, {"a": 1}, {"b": 2})]
        self.assertEqual(calls, notify.mock_calls)

    def test_without_one_nothing_happens(self):
        self.assertIsNone(manager_of().notify(ValueError(), {"a": 1}))


class OnTheServerTest(ServerTestCase):
    """The same exactness, as it arrives."""

    def test_the_wire_format_is_the_contracts(self):
        url = self.create_queue()
        answer = TaskManager(url, sender_name="me").submit("Task", b=[1, 2], a="é")
        [received] = self.receive(url, wait=20)
        self.assertEqual('{"task": "Task", "kwargs": {"b": [1, 2], "a": "\\u00e9"}}', received["Body"])
        self.assertEqual({"service_name": {"StringValue": "me", "DataType": "String"}}, received["MessageAttributes"])
        self.assertEqual(answer["MessageId"], received["MessageId"])
        self.assertEqual(answer["MD5OfMessageBody"], received["MD5OfBody"])

    def test_a_users_own_session_makes_the_queue(self):
        url = self.create_queue()
        session = boto3.session.Session(region_name="us-east-1")
        own = session.resource("sqs")
        manager = TaskManager(url, queue_constructor=own.Queue)
        manager.submit("Task")
        self.assertEqual("Task", next(manager.task_generator())[0])
        self.assertIs(own.meta.client, manager.queue.meta.client)

    def test_what_is_refused_leaves_the_queue_empty(self):
        url = self.create_queue()
        manager = TaskManager(url)
        for wrong in (lambda: manager.submit(""), lambda: manager.submit("T", x="." * 1024 * 1024)):
            self.assertRaises(InvalidTask, wrong)
        self.assertEqual((0, 0, 0), self.counts(url))

    def test_a_task_that_submits_by_its_worker_s_manager_has_a_connection_of_its_own(self):
        manager = TaskManager(self.create_queue())
        manager.submit("T")
        theirs = manager.queue

        def submit(report):
            manager.submit("T")
            return manager.queue is not theirs and manager.queue.meta.client is not theirs.meta.client

        child = isolation.Child(submit, name="T")
        self.addCleanup(child.close)
        child.start()
        self.assertTrue(child.wait(DEADLINE_SECONDS))
        self.assertTrue(child.result())
        self.assertIs(theirs, manager.queue)
        self.assertEqual("2", manager.attributes()["ApproximateNumberOfMessages"])


class CopiedTest(unittest.TestCase):
    def setUp(self):
        self.made = []
        self.manager = TaskManager(URL, queue_constructor=self.make, sender_name="me", strict=True)

    def make(self, url):
        self.made.append(Recorder())
        return self.made[-1]

    def in_child(self, function):
        """What the function returns in a forked process, a small number."""
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = function()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def test_a_manager_can_be_pickled_and_deep_copied_and_makes_a_queue_of_its_own(self):
        local = TaskManager("copied", queue_constructor=LocalQueue, sender_name="me", strict=True)
        view = local.options(delay_seconds=5, message_attributes={"a": "b"})
        for copied in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
            self.assertEqual(("copied", "me"), (copied.url, copied.sender_name))
            self.assertIsNot(view._connection, copied._connection)
            copied.submit("T", a=1)
            self.assertRaisesRegex(InvalidTask, "strict", copied.submit, "T", a=object())
        self.assertEqual(2, LocalQueue("copied").attributes["ApproximateNumberOfMessagesDelayed"])

    def test_a_manager_of_boto3s_queue_can_be_pickled(self):
        manager = TaskManager("https://sqs.eu-west-1.amazonaws.com/123456789012/name")
        for copied in (copy.deepcopy(manager), pickle.loads(pickle.dumps(manager))):
            self.assertEqual(manager.url, copied.queue.url)
            self.assertIsNot(manager.queue.meta.client, copied.queue.meta.client)

    def test_options_share_the_managers_queue_after_a_fork_too(self):
        view = self.manager.options(delay_seconds=5)

        def submit():
            for _ in range(3):
                self.assertIs(self.manager.queue, self.manager.options(delay_seconds=5).queue)
                self.assertIs(self.manager.queue, view.queue)
            return len(self.made)

        self.assertIs(self.manager.queue, view.queue)
        self.assertEqual(2, self.in_child(submit))
        self.assertEqual(1, len(self.made))

    def test_a_queue_that_is_put_on_a_view_is_the_views_alone(self):
        view = self.manager.options(delay_seconds=5)
        view.queue = other = Recorder()
        self.assertIs(other, view.queue)
        self.assertIs(self.made[0], self.manager.queue)

    def test_a_mock_of_a_manager_has_its_attributes(self):
        mocked = mock.Mock(spec=TaskManager)
        for name in ("url", "sender_name", "queue", "submit"):
            getattr(mocked, name)


if __name__ == "__main__":
    unittest.main()
