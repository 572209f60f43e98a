"""The laws of how a task may end, whoever runs it (a block, a worker with slots or without) and on whichever queue."""

import builtins
import collections
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import unittest
from unittest import mock

import boto3
from botocore.exceptions import ClientError

from sqstaskmaster import (
    CannotContinue,
    Continue,
    DeadLetter,
    LocalMessage,
    LocalQueue,
    MessageHandler,
    ProcessMessageHandler,
    TaskManager,
    Worker,
    current_task,
)
from sqstaskmaster._claim import forwarding
from sqstaskmaster._claim.stop_order import StopOrder
from sqstaskmaster._service import status
from sqstaskmaster.errors import NoAnswer
from tests.guard import awake_seconds
from tests.support import ServerTestCase, wait_until

REFUSED = ClientError({"Error": {"Code": "AccessDenied", "Message": "not allowed"}}, "SendMessage")

# A delete that is refused for another reason is tried again for as long as the claim is held.
GONE = ClientError({"Error": {"Code": "ReceiptHandleIsInvalid", "Message": "no such handle"}}, "DeleteMessage")


class OwnGroup(BaseException):
    """As the package `exceptiongroup` has it for Python 3.10: an Exception where all that is in it are."""

    def __new__(cls, text, exceptions):
        plain = all(isinstance(exception, Exception) for exception in exceptions)
        return super().__new__(OwnExceptionGroup if plain else cls, text, exceptions)

    def __init__(self, text, exceptions):
        super().__init__(text, exceptions)
        self.exceptions = tuple(exceptions)


class OwnExceptionGroup(OwnGroup, Exception):
    pass


# What asyncio.TaskGroup raises.
Group = getattr(builtins, "BaseExceptionGroup", OwnGroup)


class Task(ProcessMessageHandler):
    """Does what its message says, and writes down what it saw when it began."""

    notified: list = []
    starts_by: str | None = None  # its start method

    def __init__(self, message, path, do, step=0, sqs_timeout=30, alarm_timeout=10, hard_timeout=60):
        super().__init__(
            message,
            sqs_timeout,
            alarm_timeout,
            hard_timeout,
            term_grace=20,
            start_method=self.starts_by,
            dead_letter=(KeyError, NoSuchModel),
            max_continuations=3,
        )
        self.path, self.do, self.step = path, do, step

    def notify(self, exception, context=None):
        self.notified.append(exception)

    def run(self):
        task = current_task()
        seen = {
            "step": self.step,
            "id": task.message_id,
            "first": task.first_message_id,
            "receives": task.receive_count,
            "continuation": task.continuation,
            "colour": task.message_attributes.get("colour", {}).get("BinaryValue", b"").hex(),
            "group": task.attributes.get("MessageGroupId"),
            "pid": os.getpid(),
        }
        with open(self.path, "a") as output:
            output.write(json.dumps(seen) + "\n")
        getattr(self, self.do)()

    def is_done(self):
        pass

    def is_done_once_released(self):
        wait_until(lambda: os.path.exists(self.path + ".released"), "the task is released")

    def goes_on_once(self):
        if self.step == 0:
            raise Continue(step=1)

    def goes_on_twice(self):
        if self.step < 2:
            raise Continue(step=self.step + 1)

    def goes_on_later(self):
        raise Continue.after(600, step=1)

    def goes_on_for_ever(self):
        raise Continue(step=self.step + 1)

    def goes_on_as_another(self):
        raise Continue(no_such_argument=1)

    def goes_on_with_too_much(self):
        raise Continue(do="x" * (1 << 20))

    def goes_on_with_an_open_file(self):
        with open(self.path) as file:
            raise Continue(do=file)

    def is_given_up(self):
        raise DeadLetter("customer 4711 does not exist")

    def is_given_up_in_groups(self):
        raise Group("outer", [Group("inner", [DeadLetter("customer 4711 does not exist")])])

    def lacks_keys_in_a_group(self):
        raise Group("two", [KeyError("model"), KeyError("step")])

    def fails_in_a_group_too(self):
        raise Group("two", [DeadLetter("customer 4711 does not exist"), ValueError("another")])

    def goes_on_in_a_group(self):
        if self.step < 2:
            raise Group("one", [Continue(step=self.step + 1)])

    def goes_on_twice_at_once(self):
        raise Group("two", [Continue(step=1), Continue(step=2)])

    def goes_on_and_fails_at_once(self):
        raise Group("two", [Continue(step=1), ValueError("another")])

    def lacks_a_key(self):
        raise KeyError("model")

    def fails(self):
        raise ValueError("out of luck")

    def goes_on_when_stopped(self):
        try:
            time.sleep(3600)
        except SystemExit:
            raise Continue(do="is_done", step=7) from None

    def is_done_when_stopped(self):
        try:
            time.sleep(3600)
        except SystemExit:
            pass

    def is_given_up_when_stopped(self):
        try:
            time.sleep(3600)
        except SystemExit:
            raise DeadLetter("given up") from None

    def hangs(self):
        time.sleep(3600)


class NoSuchModel(Exception):
    """A second type, so that `dead_letter` is a tuple of several."""


class Plain(MessageHandler):
    def __init__(self, message, sqs_timeout=30, alarm_timeout=10, hard_timeout=60, do="is_done", path=None, **settings):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout, dead_letter=KeyError, **settings)
        self.path, self.do = path, do

    def notify(self, exception, context=None):
        Task.notified.append(exception)

    def run(self):
        self.step = 0
        getattr(Task, self.do)(self)


# -- who runs it ------------------------------------------------------------------------------------------------------


class InBlock:
    """A loop of the user's own."""

    handlers = {"T": Task, "Plain": Plain}

    def consume(self, task="T", **settings):
        """{outcome: how often}, when the queue is empty."""
        counts = collections.Counter()
        generator = self.manager.task_generator(
            wait_time=0, sqs_timeout=30, message_attribute_names=["All"], burst=True
        )
        for name, kwargs, message in generator:
            with self.handlers[name](message, **kwargs, **settings) as handler:
                handler.run()
            counts[str(handler.outcome)] += 1
        return dict(counts)


class InWorker:
    """A worker without slots: one of its tasks runs in the worker's own process."""

    handlers = {"T": Task, "Plain": Plain}

    def consume(self, **settings):
        return dict(self.worker(**settings).run(burst=True))

    def worker(self, **settings):
        settings = {"wait_time": 0, "sqs_timeout": 30, "alarm_timeout": 10, **settings}
        return Worker(self.manager, self.handlers, **settings)


class InSlots(InWorker):
    handlers = {"T": Task}


def initialize():
    """Something of the initializer's stays open and running in each slot."""
    global helper
    helper = subprocess.Popen(["sleep", "600"])


class InWarmSlots(InWorker):
    """Processes that stay."""

    handlers = {"T": Task}

    def worker(self, **settings):
        return super().worker(**{"initializer": initialize, "max_tasks_per_child": None, **settings})


class SpawnedTask(Task):
    starts_by = "spawn"


class InSpawnedSlots(InWorker):
    handlers = {"T": SpawnedTask}
    begins_within = 8  # a new interpreter


class SeenToBeSpawnedTask(SpawnedTask):
    """A worker whose processes stay must know it before it has a message."""

    def __init__(
        self, message, path, do, step=0, sqs_timeout=30, alarm_timeout=10, hard_timeout=60, start_method="spawn"
    ):
        super().__init__(message, path, do, step, sqs_timeout, alarm_timeout, hard_timeout)


class InWarmSpawnedSlots(InWarmSlots):
    """Fresh interpreters that stay."""

    handlers = {"T": SeenToBeSpawnedTask}


# -- on which queue ---------------------------------------------------------------------------------------------------


class EndingTestCase(unittest.TestCase):
    #: Seconds in which a task comes to its `try`, on a machine that is busy.
    begins_within = 2

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "seen")
        Task.notified = []

    def submit(self, do, task="T", kwargs=None, **options):
        manager = self.manager.options(message_attributes={"colour": b"\xff\x00"}, **options)
        return manager.submit(task, path=self.path, do=do, **(kwargs or {}))["MessageId"]

    def seen(self, path=None):
        """What tasks have written down in a file, by default when they began."""
        path = path or self.path
        if not os.path.exists(path):
            return []
        with open(path) as lines:
            return [json.loads(line) for line in lines if line.endswith("\n")]

    def failed_for(self, kind, pattern):
        """The one thing that was notified."""
        self.assertEqual([kind], [type(error) for error in Task.notified], Task.notified)
        self.assertRegex(str(Task.notified[0]), pattern)


class OnLocalQueue(EndingTestCase):
    def setUp(self):
        super().setUp()
        received = self.received = []

        # What makes the queue, for a queue of a test's own to stand round.
        class Queue(LocalQueue):
            def receive_messages(self, **kwargs):
                messages = super().receive_messages(**kwargs)
                received.extend(messages)
                return messages

        self.url = f"memory:{self.id()}"
        self.addCleanup(LocalQueue.reset, self.url)
        self.plain_queue = Queue
        self.manager = TaskManager(self.url, queue_constructor=Queue)

    def visibilities(self):
        return [seconds for message in self.received for seconds in message.visibility_changes]

    def sends_fail(self):
        patch = mock.patch.object(LocalQueue, "send_message", side_effect=REFUSED)
        patch.start()
        self.addCleanup(patch.stop)

    def deletes_fail(self):
        patch = mock.patch.object(LocalMessage, "delete", side_effect=GONE)
        patch.start()
        self.addCleanup(patch.stop)

    def left(self):
        """(messages that wait, messages that were received and not deleted)"""
        waiting = LocalQueue(self.url).attributes["ApproximateNumberOfMessages"]
        return waiting, sum(not message.deleted for message in self.received)


class OnServer(EndingTestCase, ServerTestCase):
    def setUp(self):
        super().setUp()
        self.use(self.create_queue())

    def use(self, url):
        self.url = url
        self.requests, self.refused, self.records = [], {}, {}
        # Of the session, whose clients all do as it does: the library may make a second one.
        events = boto3.DEFAULT_SESSION.events
        events.register("provide-client-params.sqs", self.note_request, unique_id="note")
        events.register("before-call.sqs", self.refuse_request, unique_id="refuse")
        self.manager = TaskManager(url)

    def plain_queue(self, url):
        return boto3.resource("sqs").Queue(url)

    def note_request(self, params, model, **_):
        self.requests.append((model.name, params))
        for record in self.records.get(model.name, ()):
            record.append(params)

    def refuse_request(self, model, **_):
        if model.name in self.refused:
            raise self.refused[model.name]

    def refuse(self, error, *operations):
        self.refused.update(dict.fromkeys(operations, error))

    def record(self, operation):
        """The parameters of such requests from now on, as they come."""
        requests = []
        self.records.setdefault(operation, []).append(requests)
        return requests

    def visibilities(self):
        """Seconds, of each change of a message's visibility that was asked for."""
        changes = []
        for name, params in self.requests:
            if name.startswith("ChangeMessageVisibility"):
                changes.extend(each["VisibilityTimeout"] for each in params.get("Entries", [params]))
        return changes

    def sends_fail(self):
        self.refuse(REFUSED, "SendMessage")

    def deletes_fail(self):
        self.refuse(GONE, "DeleteMessage", "DeleteMessageBatch")

    def left(self):
        visible, in_flight, _ = self.counts(self.url)
        return visible, in_flight


# -- the laws ---------------------------------------------------------------------------------------------------------


class ContinueLaws:
    def test_a_task_goes_on_with_its_kwargs_updated_and_all_else_as_it_was_and_no_receive_is_counted(self):
        first = self.submit("goes_on_twice")
        with self.assertLogs("sqstaskmaster", "INFO") as logs:
            self.assertEqual({"continued": 2, "done": 1}, self.consume())
        seen = self.seen()
        self.assertEqual([0, 1, 2], [each["step"] for each in seen])
        self.assertEqual([0, 1, 2], [each["continuation"] for each in seen])
        self.assertEqual({first}, {each["first"] for each in seen})
        self.assertEqual(3, len({each["id"] for each in seen}))
        self.assertEqual({1}, {each["receives"] for each in seen})
        self.assertEqual({"ff00"}, {each["colour"] for each in seen})
        self.assertEqual((0, 0), self.left())
        self.assertEqual([], Task.notified)
        finished = [record for record in logs.records if getattr(record, "action", "") == "finished"]
        # A successor may be over before the delete of what it follows is answered.
        finished.sort(key=lambda record: record.continuation or 0)
        self.assertEqual([None, 1, 2], [record.continuation for record in finished])
        self.assertIn("continuation 2", finished[2].getMessage())

    def test_a_continue_that_is_alone_in_a_group_goes_on(self):
        self.submit("goes_on_in_a_group")
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"continued": 2, "done": 1}, self.consume())

    def test_a_continue_with_anything_else_in_its_group_is_a_failure_that_says_so(self):
        for do, why in (
            ("goes_on_twice_at_once", "raised 2 times in one group"),
            ("goes_on_and_fails_at_once", "raised 1 times in one group, with 1 other errors"),
        ):
            self.submit(do)
            with self.assertLogs("sqstaskmaster"):
                self.assertEqual({"failed": 1}, self.consume())
            self.failed_for(CannotContinue, why)
            Task.notified.clear()

    def test_a_successor_that_cannot_be_sent_is_a_failure_and_the_message_stays(self):
        self.submit("goes_on_twice")
        self.sends_fail()
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"failed": 1}, self.consume())
        self.assertEqual((0, 1), self.left())
        self.failed_for(CannotContinue, "successor was not sent: .*AccessDenied")

    def test_where_the_delete_fails_after_the_send_both_are_there_and_none_is_lost(self):
        self.submit("goes_on_once")
        self.deletes_fail()
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"continued": 1, "done": 1}, self.consume())
        self.assertEqual([0, 1], [each["step"] for each in self.seen()])
        self.assertEqual((0, 2), self.left())

    def test_what_cannot_run_or_is_too_long_is_refused_before_anything_is_sent(self):
        for do, why in (
            ("goes_on_as_another", "no_such_argument"),
            ("goes_on_with_too_much", "cannot continue: .* store the rest elsewhere"),
            ("goes_on_with_an_open_file", "cannot continue: .*TextIOWrapper.* plain data"),
        ):
            with self.subTest(do):
                Task.notified = []
                self.submit(do)
                with self.assertLogs("sqstaskmaster"):
                    self.assertEqual({"failed": 1}, self.consume())
                self.assertEqual(0, self.left()[0])
                self.failed_for(CannotContinue, why)

    def test_a_chain_that_never_ends_fails_at_the_ceiling(self):
        self.submit("goes_on_for_ever")
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"continued": 3, "failed": 1}, self.consume())
        self.failed_for(CannotContinue, r"has continued 3 times and may do so 3 times \(max_continuations\)")

    def test_a_task_that_is_over_its_hard_timeout_may_still_go_on(self):
        self.submit("goes_on_when_stopped")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"continued": 1, "done": 1}, self.consume(hard_timeout=self.begins_within))
        self.assertEqual([0, 7], [each["step"] for each in self.seen()])
        self.assertEqual((0, 0), self.left())


class ContinueLocalLaws:
    def test_the_claim_is_kept_while_the_successor_is_being_sent(self):
        send = LocalQueue.send_message

        def send_once_extended(queue, **kwargs):
            [message] = self.received
            wait_until(lambda: message.visibility_changes, "the claim is extended")
            return send(queue, **kwargs)

        self.submit("goes_on_once")
        with (
            mock.patch.object(LocalQueue, "send_message", send_once_extended),
            self.assertLogs("sqstaskmaster", "INFO"),
        ):
            self.assertEqual({"continued": 1, "done": 1}, self.consume(sqs_timeout=120, alarm_timeout=0.5))
        self.assertEqual((0, 0), self.left())


class ContinueServerLaws:
    def test_a_successor_may_be_delayed(self):
        self.submit("goes_on_later")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"continued": 1}, self.consume())
        self.assertEqual((0, 0, 1), self.counts(self.url))


class DeadLetterLaws:
    def test_without_a_dead_letter_queue_it_is_a_failure_as_ever_and_one_warning_has_the_remedy(self):
        for _ in range(2):
            self.submit("is_given_up")
        with self.assertLogs("sqstaskmaster", "WARNING") as logs:
            self.assertEqual({"failed": 2}, self.consume())
        warnings = [record for record in logs.records if getattr(record, "action", "") == "dead_letter_failed"]
        self.assertEqual(1, len(warnings))
        self.assertRegex(warnings[0].getMessage(), "has no dead-letter queue: .* redrive policy, .*sqs:SendMessage")
        self.assertEqual([DeadLetter, DeadLetter], [type(error) for error in Task.notified])
        self.assertEqual((0, 2), self.left())


class DeadLetterServerLaws:
    """Those that need a dead-letter queue."""

    def use_dead_letters(self, **settings):
        self.use(self.create_queue(**{"max_receive_count": 3, **settings}))

    def in_dead_letters(self):
        found = []
        for message in self.receive(self.dead_letters):
            ours = json.loads(message["MessageAttributes"].pop(forwarding.ATTRIBUTE)["StringValue"])
            found.append((message, ours))
        return found

    def test_it_goes_to_the_dead_letter_queue_at_once_as_it_is_with_the_reason(self):
        self.use_dead_letters()
        first = self.submit("is_given_up")
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"dead-lettered": 1}, self.consume())
        self.assertEqual((0, 0), self.left())
        [(message, ours)] = self.in_dead_letters()
        self.assertEqual({"path": self.path, "do": "is_given_up"}, json.loads(message["Body"])["kwargs"])
        self.assertNotEqual(first, message["MessageId"])
        self.assertEqual(b"\xff\x00", message["MessageAttributes"]["colour"]["BinaryValue"])
        self.assertIn("service_name", message["MessageAttributes"])
        self.assertEqual("customer 4711 does not exist", ours["reason"])
        self.assertEqual(("T", "DeadLetter", "1"), (ours["task"], ours["error"], ours["receive_count"]))
        self.failed_for(DeadLetter, "customer 4711")

    def test_an_exception_of_a_type_without_retry_does_the_same(self):
        self.use_dead_letters()
        self.submit("lacks_a_key")
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"dead-lettered": 1}, self.consume())
        [(_, ours)] = self.in_dead_letters()
        self.assertEqual("KeyError: 'model'", ours["reason"])

    def test_a_group_of_nothing_else_does_the_same(self):
        for do, reason in (
            ("is_given_up_in_groups", "customer 4711 does not exist"),
            ("lacks_keys_in_a_group", "KeyError: 'model'; KeyError: 'step'"),
        ):
            with self.subTest(do):
                self.use_dead_letters()
                self.submit(do)
                with self.assertLogs("sqstaskmaster"):
                    self.assertEqual({"dead-lettered": 1}, self.consume())
                [(_, ours)] = self.in_dead_letters()
                self.assertEqual(reason, ours["reason"])

    def test_a_group_with_another_error_in_it_is_a_failure(self):
        self.use_dead_letters()
        self.submit("fails_in_a_group_too")
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"failed": 1}, self.consume())
        self.assertEqual([], self.in_dead_letters())

    def test_what_cannot_be_sent_there_fails_as_ever_and_stays(self):
        self.use_dead_letters()
        self.submit("is_given_up")
        self.sends_fail()
        with self.assertLogs("sqstaskmaster", "WARNING") as logs:
            self.assertEqual({"failed": 1}, self.consume())
        self.assertIn("sqs:SendMessage on its dead-letter queue", "\n".join(logs.output))
        self.assertEqual((0, 1), self.left())
        self.assertEqual([], self.in_dead_letters())

    def test_where_the_delete_fails_after_that_both_are_there_and_none_is_lost(self):
        self.use_dead_letters()
        self.submit("is_given_up")
        self.deletes_fail()
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"dead-lettered": 1}, self.consume())
        self.assertEqual((0, 1), self.left())
        self.assertEqual(1, len(self.in_dead_letters()))

    def test_on_a_fifo_queue_the_successor_has_its_group_and_the_step_as_its_deduplication_id(self):
        self.use(self.create_queue(FifoQueue="true"))
        first = self.submit("goes_on_once", message_group_id="g", message_deduplication_id="one")
        with self.assertLogs("sqstaskmaster"):
            sent = self.record("SendMessage")
            self.assertEqual({"continued": 1, "done": 1}, self.consume())
        self.assertEqual([f"{first}-1"], [each["MessageDeduplicationId"] for each in sent])
        self.assertEqual(["g", "g"], [each["group"] for each in self.seen()])


class WorkerDeadLetterLaws:
    """Those of a worker only."""

    def test_the_last_receive_that_the_policy_allows_is_dead_lettered_with_the_reason_and_no_earlier_one(self):
        self.use_dead_letters(max_receive_count=2)
        self.submit("fails")
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"failed": 1}, self.consume(dead_letter_reasons=True))
        self.assertEqual([], self.in_dead_letters())
        self.make_visible()
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"dead-lettered": 1}, self.consume(dead_letter_reasons=True))
        [(_, ours)] = self.in_dead_letters()
        self.assertEqual(("ValueError", "out of luck", "2"), (ours["error"], ours["reason"], ours["receive_count"]))
        self.assertEqual((0, 0), self.left())

    def make_visible(self):
        """As if the visibility timeout had ended."""
        for message in self.claimed:
            self.sqs.change_message_visibility(QueueUrl=self.url, ReceiptHandle=message, VisibilityTimeout=0)

    def use(self, url):
        super().use(url)
        self.claimed = claimed = []

        def keep(parsed, **_):
            claimed.extend(message["ReceiptHandle"] for message in parsed.get("Messages", ()))

        self.manager.queue.meta.client.meta.events.register("after-call.sqs.ReceiveMessage", keep)


class Stopping(threading.Thread):
    """Sends SIGTERM to this process when the condition holds."""

    def __init__(self, test, condition, what, act=lambda: os.kill(os.getpid(), signal.SIGTERM)):
        super().__init__(daemon=True)
        self.condition, self.what, self.act, self.error = condition, what, act, None
        test.addCleanup(self.end)
        self.start()

    def run(self):
        try:
            wait_until(self.condition, self.what)
        except AssertionError as error:
            self.error = error
        self.act()

    def end(self):
        self.join()
        if self.error is not None:
            raise self.error


class WorkerStopLaws:
    def test_a_task_that_is_stopped_with_the_worker_may_go_on_and_no_receive_is_counted(self):
        self.submit("goes_on_when_stopped")
        Stopping(self, self.seen, "the task runs")
        with self.assertLogs("sqstaskmaster", "INFO"):
            counts = self.worker(shutdown_grace=0).run()
        self.assertEqual({"continued": 1}, dict(counts))
        self.assertEqual((1, 0), self.left())
        self.assertEqual({"done": 1}, self.consume())
        self.assertEqual([(0, 1), (7, 1)], [(each["step"], each["receives"]) for each in self.seen()])
        self.assertEqual([], Task.notified)


GIVEN_BACK_LINES = {"given_back", "last_receive"}


class WorkerServerLaws:
    def test_a_deploy_that_gives_back_a_task_on_its_last_receive_warns_of_it(self):
        for max_receive_count, warned in ((1, True), (2, False)):
            with self.subTest(max_receive_count):
                self.use_dead_letters(max_receive_count=max_receive_count)
                before = len(self.seen())
                self.submit("hangs")
                Stopping(self, lambda: len(self.seen()) > before, "the task runs")
                with self.assertLogs("sqstaskmaster", "WARNING") as logs:
                    self.assertEqual({"interrupted": 1}, dict(self.worker(shutdown_grace=0).run()))
                told = [record for record in logs.records if getattr(record, "action", "") == "last_receive"]
                self.assertEqual(warned, bool(told))
                if warned:
                    self.assertRegex(
                        told[0].getMessage(), "receive 1, the last .* Raise maxReceiveCount, or .* Continue"
                    )
                self.assertEqual((1, 0), self.left())

    def test_an_unstarted_message_that_is_given_back_on_its_last_receive_is_warned_of(self):
        receive = TaskManager.receive

        def receive_and_stop(manager, *arguments, **named):
            received = receive(manager, *arguments, **named)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # where this is no main thread, so that the signal comes first
            return received

        self.use_dead_letters(max_receive_count=1)
        sent = self.submit("returns")
        with mock.patch.object(TaskManager, "receive", receive_and_stop):
            with self.assertLogs("sqstaskmaster", "INFO") as logs:
                self.assertEqual({"given back": 1}, dict(self.worker().run()))
        told = {record.action: record for record in logs.records if getattr(record, "action", "") in GIVEN_BACK_LINES}
        self.assertEqual(GIVEN_BACK_LINES, set(told))
        for record in told.values():
            self.assertEqual((sent, "T", 1), (record.message_id, record.task, record.receive_count))
        self.assertEqual((1, 0), self.left())
        self.assertEqual([], self.seen())

    def test_deleting_the_message_of_a_running_task_stops_it_within_an_alarm_timeout(self):
        self.stops_a_running_task(lambda: self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=self.claimed[-1]))

    def test_purging_the_queue_stops_its_running_tasks(self):
        self.stops_a_running_task(lambda: self.sqs.purge_queue(QueueUrl=self.url))

    def stops_a_running_task(self, act):
        self.submit("hangs")
        asked = []
        for operation in ("ChangeMessageVisibility", "DeleteMessage", "SendMessage"):
            asked.append(self.record(operation))
        sent = len(asked[2])
        Stopping(self, self.seen, "the task runs", act)
        began = awake_seconds()
        with self.assertLogs("sqstaskmaster", "INFO") as logs:
            counts = self.worker(alarm_timeout=1, sqs_timeout=30).run(burst=True)
        self.assertEqual({"claim lost": 1}, dict(counts))
        self.assertLess(awake_seconds() - began, 30)
        self.assertEqual([], asked[1])
        self.assertEqual(sent, len(asked[2]))
        self.assertNotIn(0, [each["VisibilityTimeout"] for each in asked[0]])
        self.assertEqual((0, 0), self.left())
        self.assertIn(" claim lost: message", "\n".join(logs.output))
        [warning] = [record for record in logs.records if getattr(record, "action", "") == "message_deleted"]
        self.assertEqual("WARNING", warning.levelname)
        self.assertNotIn("Traceback", "\n".join(logs.output))
        # That an extension has had no answer for half a second is told besides.
        self.assertEqual([], [error for error in Task.notified if not isinstance(error, NoAnswer)])
        self.assertFalse(os.path.exists(f"/proc/{self.seen()[0]['pid']}"))

    def test_a_task_that_is_stopped_by_hand_is_gone_its_message_is_deleted_and_nobody_is_notified(self):
        self.is_stopped_by_hand((0, 0), do="hangs")

    def test_a_task_that_is_stopped_by_hand_with_retry_is_given_back_at_once(self):
        self.is_stopped_by_hand((1, 0), do="hangs", retry=True)

    def test_whatever_a_task_that_is_stopped_by_hand_answers_it_is_stopped(self):
        for do in ("goes_on_when_stopped", "is_done_when_stopped", "is_given_up_when_stopped"):
            with self.subTest(do):
                self.use_dead_letters(max_receive_count=3)
                self.is_stopped_by_hand((0, 0), do)
                self.assertEqual([], self.in_dead_letters())

    def is_stopped_by_hand(self, left, do, retry=False):
        sent, told, before = self.submit(do), [], len(self.seen())

        def stop():
            os.kill(os.getpid(), signal.SIGTERM)  # so that a message which is given back is not taken again
            [answer] = [answer for answer in status.ask() if answer.pid == os.getpid()]
            told.append(status.stop(answer, StopOrder("no such message", retry, "")))
            told.append(status.stop(answer, StopOrder(sent, retry, "a test wants it")))

        Stopping(self, lambda: len(self.seen()) > before, "the task runs", stop)
        with self.assertLogs("sqstaskmaster", "INFO") as logs:
            counts = self.worker(shutdown_grace=60).run()
        self.assertEqual({"stopped": 1}, dict(counts))
        wait_until(lambda: len(told) == 2, "the end has been told")
        self.assertEqual(status.StopAnswer(False), told[0])
        self.assertEqual("stopped", told[1].end["outcome"])
        self.assertRegex(told[1].end["line"], f"^Task T stopped: message {sent}, receive 1")
        self.assertEqual(left, self.left())
        self.assertEqual([], Task.notified)
        self.assertIn("because: a test wants it", "\n".join(logs.output))
        self.assertEqual([], [each for each in logs.records if each.levelname != "INFO" and hasattr(each, "action")])
        self.assertFalse(os.path.exists(f"/proc/{self.seen()[-1]['pid']}"))

    def test_a_task_goes_on_without_its_claim_where_the_worker_is_told_so(self):
        self.submit("is_done_once_released")

        def release():
            wait_until(lambda: Task.notified, "the claim is lost")
            open(self.path + ".released", "w").close()

        Stopping(
            self,
            self.seen,
            "the task runs",
            lambda: (self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=self.claimed[-1]), release()),
        )
        with self.assertLogs("sqstaskmaster"):
            counts = self.worker(alarm_timeout=1, sqs_timeout=30, on_claim_lost="continue").run(burst=True)
        self.assertEqual({"done": 1}, dict(counts))


class WorkerOnServerLaws(
    ContinueLaws,
    ContinueServerLaws,
    DeadLetterLaws,
    WorkerStopLaws,
    WorkerDeadLetterLaws,
    WorkerServerLaws,
    DeadLetterServerLaws,
):
    """All that hold for a worker on a server, with slots and without."""
