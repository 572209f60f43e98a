"""`sqstaskmaster dead`, and `redrive` of some messages only: a subprocess, against a real SQS server."""

import contextlib
import io
import itertools
import json
import unittest
from unittest import mock

from botocore.exceptions import EndpointConnectionError

from sqstaskmaster import DeadLetter, LocalMessage, TaskManager
from sqstaskmaster._claim import forwarding
from sqstaskmaster._cli.operations import _only_source
from sqstaskmaster._cli import dead
from tests.support import ServerTestCase
from tests.support.commands import run


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

    def test_what_was_looked_at_is_given_back_at_once_and_each_is_shown_once(self):
        sent = {self.send(number=number) for number in range(25)}
        shown = [json.loads(line)["id"] for line in self.dead("--json").stdout.splitlines()]
        self.assertEqual(sorted(sent), sorted(shown))
        self.assertEqual((25, 0, 0), self.counts(self.dead_letters))

    def test_only_the_task_and_the_ids_that_are_asked_for_are_shown(self):
        self.send("Train")
        second = self.send("Report")
        for arguments in (["--task", "Report"], ["--id", second]):
            with self.subTest(arguments):
                found = [json.loads(line) for line in self.dead("--json", *arguments).stdout.splitlines()]
                self.assertEqual([second], [each["id"] for each in found])
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
        return {"Failed": Entries[: self.kept]}


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
