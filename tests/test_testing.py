"""SimulatedQueue beyond the laws of a queue (tests/test_queue_laws.py): its clock, its faults, what SQS refuses."""

import inspect
import textwrap
import threading
import unittest

from botocore.exceptions import ClientError, ReadTimeoutError

from sqstaskmaster import ClaimLapsed, MessageHandler, TaskManager, Worker
from sqstaskmaster._sqs.answers import code_of, is_beyond_total, is_busy, is_claim_lost
from sqstaskmaster.testing import SimulatedQueue
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
        received, polls = [], []
        polls.append(threading.Thread(target=lambda: received.append(self.receive(WaitTimeSeconds=20))))
        polls[0].start()
        wait_until(lambda: self.queue.advance(10) or received, "the poll has ended")
        polls[0].join(DEADLINE_SECONDS)
        self.queue.advance(600)
        self.assertEqual("2", self.one().attributes["ApproximateReceiveCount"])

    def test_time_goes_ahead_only(self):
        for wrong in (-1, "5", float("nan"), True):
            with self.subTest(wrong), self.assertRaisesRegex(ValueError, "seconds must be a number, 0 or more"):
                self.queue.advance(wrong)

    def test_a_handler_with_the_queues_clock_sees_that_its_claim_has_lapsed(self):
        self.manager.submit("Work")
        _, _, message = next(self.manager.task_generator(sqs_timeout=30))
        with Work(message, clock=self.queue.now) as handler:
            self.queue.advance(31)
        self.assertIsInstance(handler.lost[0], ClaimLapsed)

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
        first.change_visibility(VisibilityTimeout=0)
        self.assertEqual([], self.receive(), "the other's claim is untouched")
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
        self.assertEqual(by_content.send_message(**options), by_content.send_message(**options))

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
        self.assertTrue(is_busy(code_of(refusal.exception)))
        self.assertEqual([], self.receive())
        self.manager.submit("Work")
        self.assertEqual(1, len(self.receive()))

    def test_a_call_that_is_cut_may_have_been_carried_out(self):
        for carried_out in (False, True):
            with self.subTest(carried_out):
                self.queue.purge()
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
        self.assertEqual([], self.queue.send_messages(Entries=entries)["Failed"])

    def test_a_batch_answers_for_each_entry(self):
        self.manager.submit("Work")
        self.manager.submit("Work")
        entries = [
            {"Id": str(n), "ReceiptHandle": m.receipt_handle, "VisibilityTimeout": 5}
            for n, m in enumerate(self.receive())
        ]
        entries.append({"Id": "gone", "ReceiptHandle": "none", "VisibilityTimeout": 5})
        answer = self.queue.change_message_visibility_batch(Entries=entries)
        self.assertEqual(["0", "1"], [each["Id"] for each in answer["Successful"]])
        self.assertEqual([("gone", "InvalidParameterValue")], [(each["Id"], each["Code"]) for each in answer["Failed"]])
        self.queue.cut("DeleteMessageBatch")
        with self.assertRaises(ReadTimeoutError):
            self.queue.delete_messages(Entries=entries)
        self.assertEqual(3, len(self.queue.delete_messages(Entries=entries)["Successful"]))

    def test_a_fault_of_an_operation_that_is_none_is_refused(self):
        for order in (
            lambda: self.queue.throttle("Send"),
            lambda: self.queue.cut("ReceiveMessage", times=0),
            lambda: self.queue.fail_entries("SendMessage", 0),
        ):
            with self.assertRaises(ValueError):
                order()


class SharingTest(Case):
    def test_all_queues_of_one_url_are_one_and_other_settings_are_refused(self):
        queue = SimulatedQueue("simulated/one", visibility_timeout=5, max_receive_count=1)
        queue.send_message(MessageBody="x")
        self.assertEqual(1, len(SimulatedQueue("simulated/one").receive_messages()))
        with self.assertRaisesRegex(ValueError, "'simulated/one' with other settings"):
            SimulatedQueue("simulated/one", max_receive_count=2)

    def test_one_that_nobody_keeps_is_forgotten(self):
        SimulatedQueue("simulated/forgotten").send_message(MessageBody="x")
        self.assertEqual([], SimulatedQueue("simulated/forgotten").receive_messages())

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


if __name__ == "__main__":
    unittest.main()
