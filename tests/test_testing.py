"""SimulatedQueue beyond the laws of a queue (tests/test_queue_laws.py): its clock, its faults, what SQS refuses."""

import inspect
import itertools
import os
import pickle
import random
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest

from botocore.exceptions import ClientError, ParamValidationError, ReadTimeoutError
from botocore.loaders import create_loader
from hypothesis import given, settings, strategies

from sqstaskmaster import (
    ClaimLapsed,
    LocalMessage,
    LocalQueue,
    MessageHandler,
    ProcessMessageHandler,
    TaskManager,
    Worker,
)
from sqstaskmaster._sqs.answers import code_of, is_beyond_total, is_claim_lost, is_transient
from sqstaskmaster.testing import SimulatedQueue
from tests.guard import awake_seconds
from tests.support import DEADLINE_SECONDS, wait_until

TWELVE_HOURS = 12 * 60 * 60


class Work(MessageHandler):
    def __init__(self, message, **options):
        super().__init__(message, **{"sqs_timeout": 30, "alarm_timeout": 10, "hard_timeout": 60, **options})
        self.lost = []

    def run(self):
        pass

    def claim_lost(self, exception):
        self.lost.append(exception)


class Case(unittest.TestCase):
    def setUp(self):
        SimulatedQueue.reset()
        self.addCleanup(SimulatedQueue.reset)
        self.queue = SimulatedQueue()
        self.manager = TaskManager(self.queue.url, queue_constructor=SimulatedQueue)

    def receive(self, queue=None, **wanted):
        return (queue or self.queue).receive_messages(
            **{"MaxNumberOfMessages": 10, "AttributeNames": ["All"], **wanted}
        )

    def one(self, **wanted):
        (message,) = self.receive(**wanted)
        return message

    def refused(self, call, code):
        with self.assertRaises(ClientError) as refusal:
            call()
        self.assertEqual(code, code_of(refusal.exception))
        return refusal.exception


class ClockTest(Case):
    def test_the_block_of_its_docstring_runs(self):
        _, _, block = inspect.getdoc(SimulatedQueue).partition("::\n\n")
        lines = []
        for line in block.splitlines():
            if line and not line.startswith("    "):
                break
            lines.append(line)
        with self.assertLogs("sqstaskmaster", "ERROR"):
            exec(textwrap.dedent("\n".join(lines)), {})

    def test_time_that_is_moved_ends_delays_claims_and_polls_that_wait(self):
        self.manager.options(delay_seconds=900).submit("Late")
        self.assertEqual([], self.receive())
        self.queue.advance(899)
        self.assertEqual("1", self.queue.attributes["ApproximateNumberOfMessagesDelayed"])
        self.queue.advance(1)
        self.one(VisibilityTimeout=600)
        self.queue.advance(600)
        self.assertEqual("2", self.one().attributes["ApproximateReceiveCount"])

    def test_time_goes_ahead_only(self):
        for wrong in (-1, "5", float("nan"), True):
            with self.subTest(wrong), self.assertRaisesRegex(ValueError, "seconds must be a number, 0 or more"):
                self.queue.advance(wrong)

    def test_a_claim_lapses_where_its_process_was_suspended(self):
        self.manager.submit("Work")
        _, _, message = next(self.manager.task_generator(sqs_timeout=30))
        with Work(message) as handler:
            self.queue.advance(31, suspended=True)
        self.assertIsInstance(handler.lost[0], ClaimLapsed)

    def test_an_hour_that_passes_during_a_task_is_an_hour_of_its_heartbeat(self):
        self.manager.submit("Work")
        _, _, message = next(self.manager.task_generator(sqs_timeout=30))
        self.queue.advance(7)  # before the block is not in it
        with Work(message, hard_timeout=2 * 3600) as handler:
            self.queue.advance(4)
            self.queue.advance(3596)
            self.assertEqual("1", self.queue.attributes["ApproximateNumberOfMessagesNotVisible"])
        self.assertEqual(("done", []), (handler.outcome, handler.lost))

    def test_a_plain_handler_is_stopped_by_advance_when_its_limit_is_reached(self):
        self.manager.submit("Work")
        _, _, message = next(self.manager.task_generator(sqs_timeout=30))
        began = self.queue.now()
        with self.assertLogs("sqstaskmaster", "ERROR"), Work(message, hard_timeout=60) as handler:
            self.queue.advance(3600)
        self.assertEqual("timed out", handler.outcome)
        self.assertAlmostEqual(60, self.queue.now() - began, delta=2)

    def test_a_worker_sees_twelve_hours_and_a_lapse(self):
        queue = SimulatedQueue(max_receive_count=1)
        manager = TaskManager(queue.url, queue_constructor=SimulatedQueue)
        lost = []

        class Long(Work):
            def __init__(self, message, seconds, suspended):
                super().__init__(message, hard_timeout=TWELVE_HOURS)
                self.passing = seconds, suspended

            def run(self):
                seconds, suspended = self.passing
                queue.advance(seconds, suspended=suspended)

            def claim_lost(self, exception):
                lost.append(type(exception))

        for seconds, suspended, outcome in ((13 * 3600, False, "timed out"), (121, True, "done")):
            manager.submit("Long", seconds=seconds, suspended=suspended)
            with self.assertLogs("sqstaskmaster"):
                counts = Worker(manager, {"Long": Long}, on_claim_lost="continue", sqs_timeout=120).run(burst=True)
            self.assertEqual({outcome: 1}, dict(counts))
        self.assertEqual([ClaimLapsed], lost)

    def test_a_poll_takes_no_time_and_moves_the_clock_to_what_comes_next(self):
        began, awake = self.queue.now(), awake_seconds()
        self.assertEqual([], self.receive(WaitTimeSeconds=20))
        self.assertEqual(20, self.queue.now() - began)
        self.manager.options(delay_seconds=7).submit("Late")
        self.assertEqual(1, len(self.receive(WaitTimeSeconds=20, VisibilityTimeout=12)))
        self.assertEqual(27, self.queue.now() - began)
        self.assertEqual("2", self.one(WaitTimeSeconds=20).attributes["ApproximateReceiveCount"])
        self.assertEqual(39, self.queue.now() - began)
        self.assertLess(awake_seconds() - awake, 5)

    def test_who_waits_by_the_clock_does_not_sleep(self):
        began, awake = self.queue.now(), awake_seconds()
        self.queue.clock.wait(3600)
        self.assertEqual(3600, self.queue.now() - began)
        self.assertLess(awake_seconds() - awake, 10)

    def test_it_stands_still_while_nobody_moves_it(self):
        self.manager.submit("Work")
        first = self.one(VisibilityTimeout=1)
        self.assertEqual(self.queue.now(), self.queue.now())
        before = first.attributes["SentTimestamp"]
        self.queue.advance(5)
        self.manager.submit("Work")
        second = self.one(MaxNumberOfMessages=1, VisibilityTimeout=30)
        self.assertEqual(before, second.attributes["SentTimestamp"])
        self.assertEqual(5000, int(self.one().attributes["SentTimestamp"]) - int(before))

    def test_a_poll_leaves_the_time_alone_while_a_task_runs(self):
        began, received = self.queue.now(), []
        self.queue.clock.begin("a task")
        poll = threading.Thread(target=lambda: received.append(self.receive(WaitTimeSeconds=20)))
        poll.start()
        wait_until(lambda: self.queue.clock._polls, "it waits")
        self.assertEqual(began, self.queue.now())
        self.queue.clock.end("a task")
        poll.join(DEADLINE_SECONDS)
        self.assertEqual(([[]], 20), (received, self.queue.now() - began))

    def test_a_poll_beside_an_open_block_waits_for_a_message(self):
        self.manager.submit("Work")
        _, _, message = next(self.manager.task_generator(sqs_timeout=30))
        received = []
        with Work(message):
            began = self.queue.now()
            poll = threading.Thread(target=lambda: received.append(self.receive(WaitTimeSeconds=20)))
            poll.start()
            wait_until(lambda: self.queue.clock._polls, "it waits")
            self.manager.submit("Another")
            poll.join(DEADLINE_SECONDS)
            self.assertEqual((1, 0), (len(received[0]), self.queue.now() - began))

    def test_events_happen_in_order_however_far_the_time_is_moved(self):
        """advance(100) wakes a poll of 5 s at +5, and one that waits for a message when that one comes."""
        self.manager.options(delay_seconds=10).submit("Late")
        self.queue.clock.begin("a task")
        received = {}

        def poll(name, wait):
            received[name] = self.receive(WaitTimeSeconds=wait, VisibilityTimeout=30)

        polls = [threading.Thread(target=poll, args=each) for each in (("short", 5), ("long", 20))]
        for each in polls:
            each.start()
        wait_until(lambda: len(self.queue.clock._polls) == 2, "both wait")
        self.queue.advance(100)
        for each in polls:
            each.join(DEADLINE_SECONDS)
        self.assertEqual({"short": 0, "long": 1}, {name: len(messages) for name, messages in received.items()})
        first = received["long"][0].attributes
        waited = int(first["ApproximateFirstReceiveTimestamp"]) - int(first["SentTimestamp"])
        self.assertAlmostEqual(10_000, waited, delta=1)

    def test_a_workers_long_polls_take_no_time(self):
        """A production module's own worker, with wait_time=20."""
        began = awake_seconds()
        self.manager.submit("Work")
        self.assertEqual({"done": 1}, dict(Worker(self.manager, {"Work": Work}, wait_time=20).run(burst=True)))
        self.assertLess(awake_seconds() - began, 10)

    def test_slots_keep_their_claims_while_a_poll_waits_for_more(self):
        worker = Worker(self.manager, slots=2, wait_time=20, sqs_timeout=10, alarm_timeout=3)

        @worker.task("Nap")
        def nap():
            time.sleep(0.5)

        self.manager.submit("Nap")
        began = self.queue.now()
        self.assertEqual({"done": 1}, dict(worker.run(burst=True)))
        self.assertEqual("0", self.queue.attributes["ApproximateNumberOfMessagesNotVisible"])
        self.assertLessEqual(self.queue.now() - began, 60)

    def run_in_a_slot(self, passes, **settings):
        """Run a task that ends at its second try; `passes(queue)` while it runs. The counts, and what that raised."""
        worker = Worker(self.manager, slots=1, wait_time=0, sqs_timeout=30, alarm_timeout=10, **settings)
        raised = []
        with tempfile.TemporaryDirectory() as folder:
            started = os.path.join(folder, "started")

            @worker.task("Long")
            def long():
                if not os.path.exists(started):
                    open(started, "w").close()
                    time.sleep(DEADLINE_SECONDS)

            def other_thread():
                try:
                    wait_until(lambda: os.path.exists(started), "the task runs")
                    passes(self.queue)
                except BaseException as error:
                    raised.append(error)

            thread = threading.Thread(target=other_thread)
            self.manager.submit("Long")
            thread.start()
            with self.assertLogs("sqstaskmaster"):
                counts = worker.run(burst=True)
            thread.join(DEADLINE_SECONDS)
        return dict(counts), raised

    def test_an_hour_that_passes_during_a_task_in_a_slot_is_one_of_its_claim_and_of_its_limit(self):
        began = self.queue.now()

        def passes(queue):
            queue.advance(3599)
            self.assertEqual("1", queue.attributes["ApproximateNumberOfMessagesNotVisible"], "its claim is held")
            queue.advance(3600)

        counts, raised = self.run_in_a_slot(passes, hard_timeout=3600)
        self.assertEqual((1, []), (counts["timed out"], raised))
        self.assertAlmostEqual(7199, self.queue.now() - began, delta=1)

    def test_a_task_in_a_slot_is_stopped_before_the_end_of_the_twelve_hours(self):
        passes = lambda queue: queue.advance(TWELVE_HOURS)  # noqa: E731
        counts, raised = self.run_in_a_slot(passes, hard_timeout=TWELVE_HOURS)
        self.assertEqual((1, []), (counts["timed out"], raised))

    def test_a_claim_in_a_slot_lapses_where_its_process_was_suspended(self):
        passes = lambda queue: queue.advance(31, suspended=True)  # noqa: E731
        counts, raised = self.run_in_a_slot(passes, hard_timeout=3600)
        self.assertEqual((1, []), (counts["claim lost"], raised))

    def test_a_worker_of_queues_with_different_clocks_is_refused(self):
        other = TaskManager(SimulatedQueue().url, queue_constructor=SimulatedQueue)
        worker = Worker([self.manager, other], slots=1)
        worker.task("Any")(lambda: None)
        with self.assertRaisesRegex(ValueError, r"different clocks.*SimulatedQueue\(clock=first.clock\)"):
            worker.run(burst=True)

    def test_queues_may_share_a_clock(self):
        other = SimulatedQueue(clock=self.queue.clock)
        other.advance(5)
        self.assertEqual(self.queue.now(), other.now())
        with self.assertRaisesRegex(ValueError, "has another clock"):
            SimulatedQueue(other.url, clock=SimulatedQueue().clock)

    def test_a_claim_is_extended_to_its_twelve_hours_and_no_further(self):
        self.manager.submit("Work")
        message = self.one(VisibilityTimeout=TWELVE_HOURS)
        self.queue.advance(TWELVE_HOURS - 100)
        message.change_visibility(VisibilityTimeout=90)
        error = self.refused(lambda: message.change_visibility(VisibilityTimeout=101), "InvalidParameterValue")
        self.assertTrue(is_beyond_total(error) and not is_claim_lost(error))
        self.queue.advance(90)
        again = self.one()
        again.change_visibility(VisibilityTimeout=TWELVE_HOURS - 10)  # a new receive begins new ones


class ClaimTest(Case):
    def test_a_message_that_was_purged_or_deleted_is_a_claim_lost_and_deleting_it_again_is_none(self):
        for remove in (self.queue.purge, lambda: self.one_of.delete()):
            self.manager.submit("Work")
            self.one_of = message = self.one()
            remove()
            change = lambda: message.change_visibility(VisibilityTimeout=30)  # noqa: E731
            self.assertTrue(is_claim_lost(self.refused(change, "InvalidParameterValue")))
            message.delete()

    def test_an_extension_that_comes_too_late_is_answered_as_if_nothing_had_happened(self):
        self.manager.submit("Work")
        first = self.one(VisibilityTimeout=30)
        self.queue.advance(31)
        first.change_visibility(VisibilityTimeout=30)
        self.assertEqual([], self.receive(), "it is hidden anew")
        self.queue.advance(31)
        second = self.one(VisibilityTimeout=30)
        first.change_visibility(VisibilityTimeout=60)
        self.queue.advance(31)
        self.assertEqual([], self.receive(), "the other's claim was moved")
        first.delete()
        self.assertEqual("0", self.queue.attributes["ApproximateNumberOfMessagesNotVisible"])
        self.assertTrue(
            is_claim_lost(self.refused(lambda: second.change_visibility(VisibilityTimeout=5), "InvalidParameterValue"))
        )

    def test_what_sqs_refuses_is_refused_with_its_code(self):
        self.manager.submit("Work")
        message = self.one()
        for call in (
            lambda: message.change_visibility(VisibilityTimeout=-1),
            lambda: message.change_visibility(VisibilityTimeout=TWELVE_HOURS + 1),
            lambda: self.queue.receive_messages(MaxNumberOfMessages=11),
            lambda: self.queue.receive_messages(WaitTimeSeconds=21),
            lambda: self.queue.send_message(MessageBody="x", DelaySeconds=901),
        ):
            self.refused(call, "InvalidParameterValue")

    def test_attributes_come_where_they_are_asked_for(self):
        self.manager.options(message_attributes={"a": "1", "b": b"2"}).submit("Work")
        message = self.one(AttributeNames=[], VisibilityTimeout=0)
        self.assertEqual((None, None), (message.attributes, message.message_attributes))
        self.assertEqual({"a"}, set(self.one(MessageAttributeNames=["a"], VisibilityTimeout=0).message_attributes))
        found = self.one(MessageAttributeNames=["All"]).message_attributes
        self.assertEqual({"a", "b", "service_name"}, set(found))
        self.assertEqual(b"2", found["b"]["BinaryValue"])


class FifoTest(Case):
    def setUp(self):
        super().setUp()
        self.queue = SimulatedQueue("simulated/t.fifo", max_receive_count=2)
        self.manager = TaskManager(self.queue.url, queue_constructor=SimulatedQueue)

    def send(self, group, number):
        self.manager.options(message_group_id=group, message_deduplication_id=f"{group}{number}").submit(
            f"{group}{number}"
        )

    def names(self, **wanted):
        return [message.body[10:12] for message in self.receive(**wanted)]

    def test_a_group_keeps_its_order_and_waits_for_the_one_in_flight(self):
        for number in (1, 2):
            self.send("a", number)
        self.send("b", 1)
        first = self.one(MaxNumberOfMessages=1)
        self.assertEqual(["b1"], self.names())
        first.change_visibility(VisibilityTimeout=0)
        self.assertEqual(["a1", "a2"], self.names(VisibilityTimeout=30))
        self.queue.advance(30)
        self.assertEqual(["a2", "b1"], self.names(), "a1 was received twice and is dead")
        self.assertEqual(["a1"], [message.body[10:12] for message in self.receive(self.queue.dead_letter_queue)])

    def test_a_repetition_is_dropped_for_five_minutes(self):
        for seconds, there in ((0, 1), (299, 1), (1, 2)):
            self.queue.advance(seconds)
            self.send("a", 1)
            self.assertEqual(str(there), self.queue.attributes["ApproximateNumberOfMessages"])

    def test_without_a_deduplication_id_the_queue_must_know_by_content(self):
        options = {"MessageBody": "x", "MessageGroupId": "g"}
        self.refused(lambda: self.queue.send_message(**options), "InvalidParameterValue")
        self.refused(lambda: self.queue.send_message(MessageBody="x"), "MissingParameter")
        by_content = SimulatedQueue("simulated/c.fifo", content_based_deduplication=True)
        first, second = (by_content.send_message(**options) for _ in range(2))
        self.assertEqual(first["MessageId"], second["MessageId"])

    def test_an_old_receipt_handle_deletes_nothing(self):
        self.send("a", 1)
        message = self.one(VisibilityTimeout=5)
        self.queue.advance(6)
        self.refused(message.delete, "InvalidParameterValue")


class FaultTest(Case):
    def test_a_throttled_call_does_nothing_and_the_next_one_does(self):
        self.queue.throttle("SendMessage")
        with self.assertRaises(ClientError) as refusal:
            self.manager.submit("Work")
        self.assertTrue(is_transient(refusal.exception))
        self.assertEqual([], self.receive())
        self.manager.submit("Work")
        self.assertEqual(1, len(self.receive()))

    def test_a_call_that_is_cut_may_have_been_carried_out(self):
        for carried_out in (False, True):
            with self.subTest(carried_out):
                SimulatedQueue.reset(self.queue.url)
                self.queue.cut("SendMessage", carried_out=carried_out)
                with self.assertRaises(ReadTimeoutError):
                    self.manager.submit("Work")
                self.assertEqual(carried_out, bool(self.receive()))

    def test_a_delete_whose_answer_was_lost_is_tried_again_and_the_task_is_done(self):
        self.manager.submit("Work")
        _, _, message = next(self.manager.task_generator(sqs_timeout=30))
        self.queue.cut("DeleteMessage", carried_out=True)
        with self.assertLogs("sqstaskmaster", "WARNING"), Work(message) as handler:
            handler.run()
        self.assertEqual("done", handler.outcome)

    def test_entries_of_a_batch_fail_by_their_places_and_submit_many_sends_them_again(self):
        self.queue.fail_entries("SendMessageBatch", 0, 2)
        result = self.manager.submit_many((f"T{number}", {}) for number in range(4))
        self.assertEqual((4, 4), (result.taken, result.sent))
        self.assertEqual(4, len({message.body for message in self.receive()}))

    def test_an_entry_that_was_ordered_to_fail_is_not_carried_out_and_no_fault_of_the_sender(self):
        self.queue.fail_entries("SendMessageBatch", 1)
        entries = [{"Id": name, "MessageBody": name} for name in "abc"]
        answer = self.queue.send_messages(Entries=entries)
        self.assertEqual([("b", False)], [(each["Id"], each["SenderFault"]) for each in answer["Failed"]])
        self.assertEqual(["a", "c"], [message.body for message in self.receive()])
        self.assertNotIn("Failed", self.queue.send_messages(Entries=entries))

    def test_a_batch_answers_for_each_entry(self):
        self.manager.submit("Work")
        self.manager.submit("Work")
        entries = [
            {"Id": str(n), "ReceiptHandle": m.receipt_handle, "VisibilityTimeout": 5}
            for n, m in enumerate(self.receive())
        ]
        entries.append({"Id": "gone", "ReceiptHandle": "none", "VisibilityTimeout": 5})
        names = [{name: entry[name] for name in ("Id", "ReceiptHandle")} for entry in entries]
        answer = self.queue.change_message_visibility_batch(Entries=entries)
        self.assertEqual(["0", "1"], [each["Id"] for each in answer["Successful"]])
        self.assertEqual(
            [("gone", "ReceiptHandleIsInvalid")], [(each["Id"], each["Code"]) for each in answer["Failed"]]
        )
        self.queue.cut("DeleteMessageBatch")
        with self.assertRaises(ReadTimeoutError):
            self.queue.delete_messages(Entries=names)
        self.assertEqual(2, len(self.queue.delete_messages(Entries=names)["Successful"]))

    def test_a_fault_of_an_operation_that_is_none_is_refused(self):
        for order in (
            lambda: self.queue.throttle("Send"),
            lambda: self.queue.cut("ReceiveMessage", times=0),
            lambda: self.queue.fail_entries("SendMessage", 0),
        ):
            with self.assertRaises(ValueError):
                order()


class PromiseTest(Case):
    """What a standard queue does not promise."""

    def bodies(self, **wanted):
        return [message.body for message in self.receive(**wanted)]

    def setUp(self):
        super().setUp()
        for body in "abc":
            self.queue.send_message(MessageBody=body)

    def test_a_message_may_be_delivered_twice_though_it_was_deleted(self):
        self.queue.deliver_twice()
        first = self.receive(MaxNumberOfMessages=2)
        first[0].delete()
        self.assertEqual(["a", "b", "c"], self.bodies())
        self.assertEqual([], self.bodies())
        first[1].delete()
        self.queue.advance(30)
        self.assertEqual(["a", "c"], sorted(self.bodies()))

    def test_messages_may_be_delivered_out_of_order(self):
        self.queue.deliver_out_of_order()
        self.assertEqual(["c", "b"], self.bodies(MaxNumberOfMessages=2))
        self.queue.send_message(MessageBody="d")
        self.assertEqual(["a", "d"], self.bodies())

    def test_a_fifo_queue_does_neither(self):
        queue = SimulatedQueue("simulated/order.fifo")
        for fault in (queue.deliver_twice, queue.deliver_out_of_order):
            with self.assertRaisesRegex(ValueError, "for standard queues"):
                fault()


class HomeTest(Case):
    """A queue in memory lives in one process."""

    def setUp(self):
        super().setUp()
        LocalQueue.reset()
        self.addCleanup(LocalQueue.reset)
        self.queues = self.queue, LocalQueue("local://home")

    def outcome_of(self, function):
        class Task(ProcessMessageHandler):
            def run(self):
                function()

        said = []
        with self.assertLogs("sqstaskmaster"), Task(LocalMessage("{}"), 30, 10, 60) as handler:
            handler.notify = lambda error, context: said.append(error)
            handler.run()
        return handler.outcome, said

    def test_what_a_task_in_its_own_process_would_send_into_a_copy_is_refused(self):
        for queue in self.queues:
            for call in (
                lambda: queue.send_message(MessageBody="lost"),
                lambda: queue.send_messages(Entries=[{"Id": "0", "MessageBody": "lost"}]),
                lambda: queue.receive_messages(WaitTimeSeconds=0),
                queue.purge,
            ):
                with self.subTest(queue):
                    outcome, (error,) = self.outcome_of(call)
                    self.assertEqual("failed", outcome)
                    self.assertRegex(f"{type(error).__name__} {error}", "UnsupportedContext.*real server.*moto_server")

    def test_it_is_refused_before_a_lock_is_taken_that_may_have_been_inherited(self):
        with self.queue.clock.changed:
            outcome, _ = self.outcome_of(lambda: self.queue.send_message(MessageBody="lost"))
        self.assertEqual("failed", outcome)

    def test_a_task_in_its_own_process_cannot_move_the_time(self):
        for advance in (self.queue.advance, self.queue.clock.advance):
            outcome, (error,) = self.outcome_of(lambda: advance(5))
            self.assertRegex(str(error), "in the process of a task")

    def test_what_arrives_in_another_process_by_pickle_is_a_copy_and_refuses_to_send(self):
        code = "import pickle, sys; pickle.load(sys.stdin.buffer).send_message(MessageBody='lost')"
        for queue in self.queues:
            ended = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(queue), capture_output=True)
            self.assertRegex(
                ended.stderr.decode(), "UnsupportedContext: .* came here from another process.*real server"
            )

    def test_a_copy_in_the_same_process_is_the_queue(self):
        for queue in self.queues:
            pickle.loads(pickle.dumps(queue)).send_message(MessageBody="x")
            self.assertEqual(1, len(queue.receive_messages(WaitTimeSeconds=0)))

    def test_in_any_other_fork_it_works(self):
        """As under a test runner that forks, and a server that forks its workers."""
        for queue in self.queues:
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    queue.send_message(MessageBody="x")
                    code = 0 if len(queue.receive_messages(WaitTimeSeconds=0)) == 1 else 2
                finally:
                    os._exit(code)
            self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def test_a_task_in_its_own_process_is_stopped_at_its_limit_when_the_time_is_moved(self):
        class Long(ProcessMessageHandler):
            def run(self):
                time.sleep(DEADLINE_SECONDS)

        self.manager.submit("Long")
        _, _, message = next(self.manager.task_generator(sqs_timeout=30))
        mover = threading.Timer(0.3, self.queue.advance, [3600])
        mover.start()
        self.addCleanup(mover.join)
        with self.assertLogs("sqstaskmaster"), Long(message, 30, 0.5, 3600) as handler:
            handler.run()
        self.assertEqual("timed out", handler.outcome)


class SpeedTest(Case):
    def test_what_boto3_thinks_of_texts_and_numbers_depends_on_their_types_alone(self):
        """What was found right once is not looked at again."""
        self.queue.send_message(MessageBody="x", DelaySeconds=5)
        for wrong in ({"MessageBody": "x", "DelaySeconds": 5.0}, {"MessageBody": b"x", "DelaySeconds": 5}):
            with self.assertRaises(ParamValidationError):
                self.queue.send_message(**wrong)
        model = create_loader().load_service_model("sqs", "service-2")
        for name, shape in model["shapes"].items():
            if shape["type"] in ("string", "integer"):
                self.assertTrue({"min", "max", "pattern"}.isdisjoint(shape), name)

    def test_nothing_is_kept_of_messages_that_are_gone_though_the_clock_stands_still(self):
        for _ in range(1000):
            self.queue.send_message(MessageBody="x")
            self.one(VisibilityTimeout=30).delete()
        self.assertLess(len(self.queue._home.store._hidden), 100)

    def test_what_is_in_flight_costs_a_receive_nothing(self):
        """Steps of the interpreter, which no other process can slow down."""

        def steps(length):
            queue = SimulatedQueue()
            for _ in range(length):
                queue.send_message(MessageBody="x")
            for _ in range(length // 10):
                queue.receive_messages(MaxNumberOfMessages=10)
            queue.send_message(MessageBody="x")
            counted = itertools.count()
            sys.setprofile(lambda *_: next(counted))
            try:
                (message,) = queue.receive_messages()
                message.change_visibility(VisibilityTimeout=60)
                message.delete()
            finally:
                sys.setprofile(None)
            return next(counted)

        self.assertLess(steps(5000), 2 * steps(50))


class SharingTest(Case):
    def test_all_queues_of_one_url_are_one_and_other_settings_are_refused(self):
        queue = SimulatedQueue("simulated/one", visibility_timeout=5, max_receive_count=1)
        queue.send_message(MessageBody="x")
        self.assertEqual(1, len(SimulatedQueue("simulated/one").receive_messages()))
        with self.assertRaisesRegex(ValueError, "'simulated/one' with other settings"):
            SimulatedQueue("simulated/one", max_receive_count=2)

    def test_settings_survive_where_nobody_keeps_the_queue(self):
        manager = TaskManager(SimulatedQueue(max_receive_count=2).url, queue_constructor=SimulatedQueue)
        self.assertIn('"maxReceiveCount":2', manager.queue.attributes["RedrivePolicy"])

    def test_reset_forgets_messages_and_faults_and_lets_the_next_test_choose_other_settings(self):
        """One failed test does not fail the next two."""
        queue = SimulatedQueue("simulated/reset", max_receive_count=1, visibility_timeout=5)
        manager = TaskManager("simulated/reset", queue_constructor=SimulatedQueue)  # a production module's
        queue.send_message(MessageBody="x")
        queue.throttle("SendMessage")
        queue.clock.begin("a task that nobody ends")
        queue.purge()
        SimulatedQueue.reset()
        self.assertEqual([], queue.receive_messages(WaitTimeSeconds=20))
        queue.purge()
        again = SimulatedQueue("simulated/reset", visibility_timeout=7)
        manager.submit("T")
        self.assertEqual(
            ("7", "1"), (manager.queue.attributes["VisibilityTimeout"], str(len(again.receive_messages())))
        )

    def test_a_production_modules_own_manager_and_worker_have_the_queue_for_a_block(self):
        manager = TaskManager("https://sqs.eu-west-1.amazonaws.com/123456789012/own")
        worker, before = Worker(manager, {"Work": Work}), manager.queue
        for _ in range(2):
            with SimulatedQueue.in_place_of(manager, max_receive_count=3) as queue:
                self.assertEqual([], queue.receive_messages())
                manager.submit("Work")
                self.assertEqual({"done": 1}, dict(worker.run(burst=True)))
                manager.submit("Work")
        self.assertIs(before, manager.queue)

    def test_a_block_that_an_earlier_test_never_left_holds_up_no_poll(self):
        self.manager.submit("Work")
        _, _, message = next(self.manager.task_generator())
        with Work(message):
            SimulatedQueue.reset()
            began = awake_seconds()
            self.receive(WaitTimeSeconds=20)
            self.assertLess(awake_seconds() - began, 5)

    def test_a_message_that_was_moved_is_the_dead_letter_queues_alone(self):
        queue = SimulatedQueue(max_receive_count=1)
        queue.send_message(MessageBody="x")
        queue.receive_messages(VisibilityTimeout=30)[0].change_visibility(VisibilityTimeout=0)
        self.assertEqual([], queue.receive_messages())
        dead = queue.dead_letter_queue
        for _ in range(2):
            self.assertEqual(1, len(dead.receive_messages(VisibilityTimeout=30)))
            queue.advance(30)
            self.assertEqual("0", queue.attributes["ApproximateNumberOfMessages"])
            self.assertEqual("1", dead.attributes["ApproximateNumberOfMessages"])

    def test_a_dead_letter_queue_that_is_not_there_is_said(self):
        with self.assertRaisesRegex(ValueError, "has no dead-letter queue: make it with max_receive_count"):
            self.queue.dead_letter_queue

    def test_what_is_not_simulated_is_refused_in_words(self):
        with self.assertRaisesRegex(AttributeError, "has no add_permission: .* real SQS server"):
            self.queue.add_permission(Label="l", AWSAccountIds=["1"], Actions=["SendMessage"])
        with self.assertRaisesRegex(ValueError, "does not simulate KmsMasterKeyId: use a real SQS server"):
            self.queue.set_attributes(Attributes={"KmsMasterKeyId": "alias/k"})
        with self.assertRaisesRegex(ValueError, "Only FIFO queues deduplicate"):
            SimulatedQueue(content_based_deduplication=True)
        for name, wrong in (
            ("visibility_timeout", 43201),
            ("max_receive_count", 0),
            ("delay_seconds", 901),
            ("wait_time_seconds", 21),
            ("maximum_message_size", 1023),
            ("retention_seconds", 59),
            ("deduplication_scope", "all"),
        ):
            with self.subTest(name), self.assertRaisesRegex(ValueError, f"{name} must be .*, not '?{wrong}"):
                SimulatedQueue(**{name: wrong})

    def test_a_worker_runs_on_one_and_dead_letters_into_its_dead_letter_queue(self):
        class Hopeless(Work):
            def run(self):
                raise ValueError("nobody can")

        queue = SimulatedQueue(max_receive_count=3)
        manager = TaskManager(queue.url, queue_constructor=SimulatedQueue)
        manager.submit("T")
        make = lambda message: Hopeless(message, dead_letter=ValueError)  # noqa: E731
        with self.assertLogs("sqstaskmaster", "ERROR"):
            self.assertEqual({"dead-lettered": 1}, dict(Worker(manager, {"T": make}, wait_time=0).run(burst=True)))
        (dead,) = queue.dead_letter_queue.receive_messages(MessageAttributeNames=["All"])
        self.assertIn("nobody can", dead.message_attributes["sqstaskmaster"]["StringValue"])


class Plain:
    """What a queue of two receives has to do, in the plainest words: a list, looked through from the beginning."""

    def __init__(self, fifo):
        self.fifo = fifo
        self.now = 0
        self.messages, self.dead, self.received = [], [], []

    def hidden(self, message):
        return message["visible"] > self.now

    def send(self, group):
        name = f"{group}{sum(message['group'] == group for message in self.all())}"
        self.messages.append({"name": name, "group": group, "visible": 0, "receives": 0, "order": len(self.all())})

    def all(self):
        return [*self.messages, *self.dead, *self.gone]

    gone = ()

    def receive(self, most, seconds):
        locked = {message["group"]: message["order"] for message in reversed(self.messages) if self.hidden(message)}
        free = [m for m in self.messages if not self.hidden(m)]
        if self.fifo:
            free = [m for m in free if m["order"] < locked.get(m["group"], 10**6)]
            first = {m["group"]: m["order"] for m in reversed(free)}
            free.sort(key=lambda m: (first[m["group"]], m["order"]))
        taken = []
        for message in free:
            if len(taken) == most:
                break
            if message["receives"] == 2:
                self.messages.remove(message)
                self.dead.append(message)
                continue
            message["receives"] += 1
            message["visible"] = self.now + seconds
            taken.append(message["name"])
            self.received.append((message, message["receives"]))
        return taken

    def change(self, place, seconds):
        message, _ = self.received[place % len(self.received)]
        if message not in self.messages:
            return "refused"
        message["visible"] = self.now + seconds

    def delete(self, place):
        message, receives = self.received[place % len(self.received)]
        if message not in self.messages:
            return None
        if self.fifo and (message["receives"] != receives or not self.hidden(message)):
            return "refused"
        self.messages.remove(message)
        self.gone = [*self.gone, message]

    def advance(self, seconds):
        self.now += seconds

    def counts(self):
        hidden = sum(map(self.hidden, self.messages))
        return len(self.messages) - hidden, hidden


class Simulated:
    """The same operations on a SimulatedQueue."""

    def __init__(self, fifo):
        self.fifo = fifo
        self.queue = SimulatedQueue(f"simulated/plain{'.fifo' if fifo else ''}", max_receive_count=2)
        self.sent, self.received = [], []

    def send(self, group):
        name = f"{group}{self.sent.count(group)}"
        self.sent.append(group)
        ids = {"MessageGroupId": group, "MessageDeduplicationId": name} if self.fifo else {}
        self.queue.send_message(MessageBody=name, **ids)

    def receive(self, most, seconds):
        received = self.queue.receive_messages(MaxNumberOfMessages=most, VisibilityTimeout=seconds)
        self.received += received
        return [message.body for message in received]

    def change(self, place, seconds):
        return self.refused(self.received[place % len(self.received)].change_visibility, VisibilityTimeout=seconds)

    def delete(self, place):
        return self.refused(self.received[place % len(self.received)].delete)

    def refused(self, call, **given):
        try:
            call(**given)
        except ClientError:
            return "refused"

    def advance(self, seconds):
        self.queue.advance(seconds)

    def counts(self):
        names = ("", "NotVisible")
        return tuple(int(self.queue.attributes[f"ApproximateNumberOfMessages{name}"]) for name in names)


class Random:
    """Operations drawn from one seed: lists of hypothesis's own are too short to lock and unlock many groups."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def operations(self, number):
        for _ in range(number):
            choose = self.random.choice
            yield choose(
                (
                    ("send", choose("ab")),
                    ("receive", self.random.randint(1, 4), choose((0, 10, 30))),
                    ("receive", 4, 30),
                    ("change", -self.random.randint(1, 5), choose((0, 10, 30))),
                    ("delete", -self.random.randint(1, 5)),
                    ("advance", choose((1, 9, 10))),
                )
            )


class PlainTest(unittest.TestCase):
    @settings(max_examples=150, deadline=None)
    @given(strategies.booleans(), strategies.integers(0, 2**32))
    def test_heaps_do_what_a_list_that_is_looked_through_would(self, fifo, seed):
        SimulatedQueue.reset()
        plain, ours = Plain(fifo), Simulated(fifo)
        for name, *values in Random(seed).operations(150):
            if name in ("change", "delete") and not plain.received:
                continue
            expected = getattr(plain, name)(*values)
            self.assertEqual(expected, getattr(ours, name)(*values), (name, values))
            self.assertEqual(plain.counts(), ours.counts(), (name, values))
        dead = ours.queue.dead_letter_queue
        found = []
        while received := dead.receive_messages(MaxNumberOfMessages=10, VisibilityTimeout=40_000):
            for message in received:
                found.append(message.body)
                message.delete()
        self.assertEqual(sorted(message["name"] for message in plain.dead), sorted(found))


if __name__ == "__main__":
    unittest.main()
