"""`sqstaskmaster dead`, and `redrive` of some messages only: a subprocess, against a real SQS server."""

import argparse
import contextlib
import io
import itertools
import json
import signal
import unittest
from unittest import mock

from botocore.exceptions import EndpointConnectionError

from sqstaskmaster import DeadLetter, LocalMessage, TaskManager
from sqstaskmaster._claim import forwarding
from sqstaskmaster._cli.operations import _only_source
from sqstaskmaster._cli import dead
from sqstaskmaster._cli.exits import CommandError
from tests.support import DEADLINE_SECONDS, ServerTestCase, endpoint
from tests.support.commands import Command, online, run
from tests.support.faults import Faulty
from tests.support.proxy import Proxy


class DeadTestCase(ServerTestCase):
    def setUp(self):
        super().setUp()
        self.url = self.create_queue(max_receive_count=3)

    def send(self, task="Train", queue=None, **kwargs):
        body = json.dumps({"task": task, "kwargs": kwargs})
        return self.sqs.send_message(QueueUrl=queue or self.dead_letters, MessageBody=body)["MessageId"]

    def dead_letter(self, error, **kwargs):
        """A message as a worker dead-letters it, with Binary and other attributes of the user's."""
        attributes = {"a": {"DataType": "String", "StringValue": "b"}, "c": {"DataType": "Binary", "BinaryValue": b"d"}}
        manager = TaskManager(self.url).options(message_attributes={"a": "b", "c": b"d"})
        manager.submit("Train", **kwargs)
        _, _, message = manager.receive(0, 30, 1, MessageAttributeNames=["All"])[0]
        request = forwarding.dead_letter(message, "Train", error, "a test", 0)
        message.delete()
        self.sqs.send_message(QueueUrl=self.dead_letters, **request)
        return attributes

    def dead(self, *arguments, code=0):
        finished = run("dead", self.dead_letters, *arguments)
        self.assertEqual(code, finished.returncode, finished.stderr)
        return finished

    def redrive(self, *arguments, code=0):
        finished = run("redrive", self.dead_letters, *arguments)
        self.assertEqual(code, finished.returncode, finished.stderr)
        return finished


class DeadTest(DeadTestCase):
    def test_each_message_is_a_line_with_its_task_reason_and_receives(self):
        self.dead_letter(DeadLetter("no such customer"), customer=4711)
        self.send("Report", month="x" * 100)
        self.sqs.send_message(QueueUrl=self.dead_letters, MessageBody="no task")
        lines = self.dead().stdout.splitlines()
        self.assertEqual(4, len(lines), lines)
        train, report, none = (
            next(line for line in lines if f" {name} " in line) for name in ("Train", "Report", "task)")
        )
        self.assertIn('{"customer": 4711}', train)
        self.assertIn("DeadLetter: no such customer", train)
        self.assertIn("xxx...", report)
        self.assertIn("(no task)  no task", none)

    def test_where_no_reason_is_known_it_says_what_would_give_them(self):
        self.send()
        self.assertIn("Worker(dead_letter_reasons=True)", self.dead().stderr)
        self.dead_letter(DeadLetter("no such customer"))
        self.assertNotIn("Worker(dead_letter_reasons=True)", self.dead().stderr)

    def test_what_was_looked_at_is_given_back_at_once_and_each_is_shown_once(self):
        sent = {self.send(number=number) for number in range(25)}
        shown = [json.loads(line)["message_id"] for line in self.dead("--json").stdout.splitlines()]
        self.assertEqual(sorted(sent), sorted(shown))
        self.assertEqual((25, 0, 0), self.counts(self.dead_letters))

    def test_only_the_task_and_the_ids_that_are_asked_for_are_shown(self):
        self.send("Train")
        second = self.send("Report")
        for arguments in (["--task", "Report"], ["--id", second]):
            with self.subTest(arguments):
                found = [json.loads(line) for line in self.dead("--json", *arguments).stdout.splitlines()]
                self.assertEqual([second], [each["message_id"] for each in found])
        limited = self.dead("--limit", "1")
        self.assertEqual(2, len(limited.stdout.splitlines()))
        self.assertIn("--limit", limited.stderr)
        self.assertEqual((2, 0, 0), self.counts(self.dead_letters))

    def test_json_has_the_whole_message(self):
        self.dead_letter(ValueError("odd"), text="y" * 500)
        found = json.loads(self.dead("--json").stdout)
        self.assertEqual({"text": "y" * 500}, json.loads(found["body"])["kwargs"])
        self.assertEqual("ValueError: odd", found["reason"])
        self.assertEqual("1970-01-01T00:00:00Z", found["when"])
        self.assertEqual("b", found["message_attributes"]["a"]["StringValue"])
        self.assertEqual({"DataType": "Binary", "BinaryValue": "ZA=="}, found["message_attributes"]["c"])
        self.assertGreater(found["age"], 1e9)

    def test_a_queue_whose_messages_a_look_would_move_on_is_refused_untouched(self):
        sent = self.send(queue=self.url)
        for command in (["dead", self.url], ["redrive", self.url, "--to", self.dead_letters, "--limit", "1"]):
            with self.subTest(command):
                finished = run(*command)
                self.assertEqual(4, finished.returncode, finished.stderr)
                self.assertIn("redrive policy of its own", finished.stderr)
        (message,) = self.receive(self.url)
        self.assertEqual((sent, "1"), (message["MessageId"], message["Attributes"]["ApproximateReceiveCount"]))

    def test_a_fifo_queue_says_what_a_look_cannot_see(self):
        self.create_queue(max_receive_count=3, FifoQueue="true", ContentBasedDeduplication="true")
        self.assertIn("first 10 messages of each message group", self.dead().stderr)


class RedriveSomeTest(DeadTestCase):
    def test_the_one_source_goes_by_the_url_that_the_user_gave(self):
        """A server of one's own may know itself by another: where the user's names the region, its own does not."""
        client = mock.Mock()
        client.get_paginator.return_value.paginate.return_value = [{"queueUrls": ["http://127.0.0.1:5000/1/tasks"]}]
        found = _only_source(client, "https://sqs.eu-west-1.amazonaws.com/1/dead")
        self.assertEqual("https://sqs.eu-west-1.amazonaws.com/1/tasks", found)

    def test_those_of_the_task_go_to_the_one_source_and_the_others_stay(self):
        for number in range(12):
            self.send("Train", number=number)
        other = self.send("Report")
        finished = self.redrive("--task", "Train")
        self.assertIn(f"12 messages moved to {self.url}", finished.stdout)
        self.assertEqual((12, 0, 0), self.counts(self.url))
        self.assertEqual((1, 0, 0), self.counts(self.dead_letters))
        self.assertEqual(other, self.receive(self.dead_letters)[0]["MessageId"])

    def test_a_message_keeps_its_attributes_and_loses_its_reason(self):
        attributes = self.dead_letter(DeadLetter("why"), customer=1)
        self.redrive("--limit", "1")
        (message,) = self.receive(self.url)
        found = message["MessageAttributes"]
        ours = json.loads(found.pop(forwarding.ATTRIBUTE)["StringValue"])
        self.assertEqual({"first_sent"}, set(ours))
        found.pop("service_name")
        self.assertEqual(attributes, found)

    def test_ids_and_limit_and_destination_hold(self):
        ids = [self.send(number=number) for number in range(3)]
        elsewhere = self.create_queue()
        self.redrive("--id", ids[1], "--to", elsewhere)
        self.assertEqual((1, 0, 0), self.counts(elsewhere))
        finished = self.redrive("--id", "nobody", code=4)
        self.assertIn("Not found: nobody", finished.stderr)
        self.redrive("--limit", "1")
        self.assertEqual((1, 0, 0), self.counts(self.url))
        self.assertEqual((1, 0, 0), self.counts(self.dead_letters))

    def test_a_message_that_cannot_be_sent_stays(self):
        self.send()
        self.redrive("--limit", "1", "--to", self.url + "-not", code=4)
        self.assertEqual((1, 0, 0), self.counts(self.dead_letters))


class DeduplicationTest(DeadTestCase):
    def test_two_messages_of_one_id_that_die_within_five_minutes_are_both_kept(self):
        """With content-based deduplication that is every recurring task with the same arguments."""
        url = self.create_queue(max_receive_count=3, FifoQueue="true")
        for _ in range(2):
            source = self.create_queue(FifoQueue="true")  # in the place of the five minutes between the two
            manager = TaskManager(source).options(message_group_id="g", message_deduplication_id="daily")
            manager.submit("Train")
            _, _, message = manager.receive(0, 30, 1, MessageAttributeNames=["All"])[0]
            request = forwarding.dead_letter(message, "Train", DeadLetter("why"), "a test")
            self.sqs.send_message(QueueUrl=self.dead_letters, **request)
        self.assertEqual((2, 0, 0), self.counts(self.dead_letters))
        self.redrive("--task", "Train")
        self.assertEqual((2, 0, 0), self.counts(url))

    def test_a_redrive_that_is_repeated_sends_each_message_once(self):
        url = self.create_queue(max_receive_count=3, FifoQueue="true")
        message = {"MessageBody": '{"task": "T", "kwargs": {}}', "MessageGroupId": "g", "MessageDeduplicationId": "d"}
        self.sqs.send_message(QueueUrl=self.dead_letters, **message)
        (dead_one,) = TaskManager(self.dead_letters).queue.receive_messages(AttributeNames=["All"], VisibilityTimeout=0)
        self.sqs.send_message(QueueUrl=url, **forwarding.redriven(dead_one, True))  # and then it was killed
        self.redrive("--task", "T")
        self.assertEqual(((1, 0, 0), (0, 0, 0)), (self.counts(url), self.counts(self.dead_letters)))

    def test_a_message_that_died_young_on_a_fifo_queue_is_not_dropped_as_a_repetition(self):
        url = self.create_queue(max_receive_count=3, FifoQueue="true")
        body = json.dumps({"task": "Train", "kwargs": {}})
        message = {"MessageBody": body, "MessageGroupId": "g", "MessageDeduplicationId": "once"}
        self.sqs.send_message(QueueUrl=url, **message)
        (received,) = self.receive(url)
        self.sqs.delete_message(QueueUrl=url, ReceiptHandle=received["ReceiptHandle"])
        self.sqs.send_message(QueueUrl=self.dead_letters, **message)
        self.redrive("--task", "Train")
        self.assertEqual((1, 0, 0), self.counts(url))
        self.assertEqual("g", self.receive(url)[0]["Attributes"]["MessageGroupId"])


class StoppedTest(DeadTestCase):
    """Ctrl-C, or a supervisor's SIGTERM, while a message is on its way between the two queues."""

    def stopped(self, command, number, operation):
        """What the command says that is sent the signal while the server has its first request of that kind."""
        process = None

        def rule(request):
            if request.operation == operation and process.process.poll() is None and not sent:
                sent.append(request)
                process.process.send_signal(number)
            return request.forward()

        sent = []
        proxy = Proxy(self, endpoint(), rule)
        process = Command(self, *command, cwd=None, AWS_ENDPOINT_URL=proxy.url)
        self.assertEqual(130, process.process.wait(DEADLINE_SECONDS), process.lines())
        return process.lines()

    def test_a_redrive_finishes_the_message_it_is_at_gives_back_the_rest_and_says_where_it_stopped(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            for operation in ("SendMessage", "DeleteMessage", "ReceiveMessage"):
                with self.subTest(number, operation=operation):
                    self.url = self.create_queue(max_receive_count=3)
                    ids = [self.send(number=n) for n in range(4)]
                    command = ("redrive", self.dead_letters, "--task", "Train", "--to", self.url)
                    said = "\n".join(self.stopped(command, number, operation))
                    moved = 0 if operation == "ReceiveMessage" else 1
                    self.assertEqual((moved, 0, 0), self.counts(self.url))
                    self.assertEqual((4 - moved, 0, 0), self.counts(self.dead_letters))
                    self.assertIn(f"Stopped by {number.name} after {moved} messages", said)
                    if moved:
                        self.assertTrue(any(f"the last of them {each}" in said for each in ids), said)

    def test_a_look_that_is_stopped_gives_back_what_it_has_seen(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number):
                self.url = self.create_queue(max_receive_count=3)
                self.send()
                said = self.stopped(("dead", self.dead_letters), number, "ReceiveMessage")
                self.assertIn(f"Stopped by {number.name}", said[-1])
                self.assertEqual((1, 0, 0), self.counts(self.dead_letters))

    def test_a_pause_between_two_messages_ends_with_it(self):
        for n in range(2):
            self.send(number=n)
        # A message in 1,000 s: nobody would wait for the second.
        with mock.patch.object(dead, "send", side_effect=lambda *_: signal.raise_signal(signal.SIGTERM)):
            arguments = argparse.Namespace(url=self.dead_letters, task=None, id=None, limit=5, rate=0.001)
            with self.assertRaises(CommandError) as stopped:
                dead.move_some(arguments, self.url)
        self.assertIn("Stopped by SIGTERM after 1 messages", str(stopped.exception))

    def test_errors_name_the_queue_that_was_asked(self):
        self.send()
        elsewhere = self.url + "-not"
        finished = self.redrive("--limit", "1", "--to", elsewhere, code=4)
        self.assertIn(f"SQS refused SendMessage for {elsewhere}", finished.stderr)
        finished = self.redrive("--to", elsewhere, code=4)
        self.assertIn(f"SQS refused GetQueueAttributes for {elsewhere}", finished.stderr)

    def test_a_message_that_was_sent_and_not_deleted_is_told_as_being_in_both(self):
        sent = self.send()
        proxy = Faulty(self, endpoint(), "DeleteMessage", "a page")
        environ = online(AWS_ENDPOINT_URL=proxy.url)
        finished = run("redrive", self.dead_letters, "--limit", "1", "--to", self.url, environ=environ)
        self.assertEqual(5, finished.returncode, finished.stderr)
        self.assertIn(f"Message {sent} was sent, but not deleted, so it is in both queues now", finished.stderr)
        self.assertEqual(((1, 0, 0), (1, 0, 0)), (self.counts(self.url), self.counts(self.dead_letters)))


class UnreliableQueue:
    """Answers every receive with the same messages, and gives back only some of what it is asked to."""

    url = "https://sqs/dead"

    def __init__(self, kept, messages):
        self.kept, self.messages = kept, messages

    def receive_messages(self, **_):
        return self.messages

    def change_message_visibility_batch(self, Entries):
        if self.kept is None:
            raise EndpointConnectionError(endpoint_url=self.url)
        return {"Failed": Entries[: self.kept], "Successful": Entries[self.kept :]}


class LookTest(unittest.TestCase):
    """What no server does to order: it delivers twice, does not stop, refuses a part."""

    MESSAGES = [LocalMessage(json.dumps({"task": "T", "kwargs": {}}), {}) for _ in range(3)]

    def look(self, kept=0):
        """The ids that a look of a minute shows, and what it says."""
        times = itertools.count(step=25.0)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            with dead._Look(UnreliableQueue(kept, self.MESSAGES), lambda: next(times)) as look:
                shown = [message.message_id for message in look.matching("T", None)]
                look.tell_what_was_not_seen(None)
        return shown, said.getvalue()

    def test_a_message_that_is_delivered_twice_is_shown_once(self):
        self.assertEqual([message.message_id for message in self.MESSAGES], self.look()[0])

    def test_a_queue_that_never_comes_to_an_end_is_looked_at_for_a_minute(self):
        self.assertEqual("There may be more: a look ends after 60 s\n", self.look()[1])

    def test_what_could_not_be_given_back_is_counted(self):
        for kept, count in ((2, 2), (None, 3)):
            self.assertIn(f"{count} messages were not given back: they are visible again in 120 s", self.look(kept)[1])


if __name__ == "__main__":
    unittest.main()
