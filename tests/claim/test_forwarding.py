"""What is sent on of a message: its successor, or itself with the reason why it is given up."""

import itertools
import json
import unittest

from sqstaskmaster import LocalMessage
from sqstaskmaster._claim import forwarding
from sqstaskmaster._claim.forwarding import Chain, chain_of, dead_letter, reason_of, redriven, successor
from sqstaskmaster._sqs.limits import MAX_MESSAGE_BYTES, message_bytes
from sqstaskmaster.errors import CannotContinue

TRACE = {"StringValue": "00-abc", "DataType": "String"}
FIFO = {"MessageGroupId": "g", "MessageDeduplicationId": "d"}
HEADER = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"
BLOB = {"BinaryValue": b"\x00\xff", "DataType": "Binary.gzip"}


def message(system=None, **attributes):
    made = LocalMessage('{"task": "T", "kwargs": {"a": 1}}', system or {"SentTimestamp": "1700000000000"}, attributes)
    made.message_id = "first-id"
    return made


def attributes(count):
    return {f"a{n}": TRACE for n in range(count)}


def received(request):
    """The message that a request sends, as it is received."""
    again = LocalMessage(request["MessageBody"], {"SentTimestamp": "1800000000000"}, request["MessageAttributes"])
    again.message_id = "later-id"
    return again


def continued(of, most=1000, delay=0, has_attributes=True, **kwargs):
    return successor(of, "T", {"a": 1, **kwargs}, delay, most, has_attributes)


class SuccessorTest(unittest.TestCase):
    def test_it_is_the_same_task_with_its_attributes_byte_for_byte_and_one_of_ours(self):
        request = continued(message(trace=TRACE, blob=BLOB), step=2)
        self.assertEqual({"task": "T", "kwargs": {"a": 1, "step": 2}}, json.loads(request["MessageBody"]))
        self.assertEqual((TRACE, BLOB), (request["MessageAttributes"]["trace"], request["MessageAttributes"]["blob"]))
        self.assertEqual({"trace", "blob", "sqstaskmaster"}, set(request["MessageAttributes"]))
        self.assertEqual({"MessageBody", "MessageAttributes"}, set(request))

    def test_the_number_the_first_id_and_the_first_send_time_travel_along(self):
        first = message()
        self.assertEqual(Chain(), chain_of(first))
        second = received(continued(first))
        self.assertEqual(Chain(1, "first-id", "1700000000000"), chain_of(second))
        third = received(continued(second))
        self.assertEqual(Chain(2, "first-id", "1700000000000"), chain_of(third))

    def test_the_ceiling_is_a_failure_that_says_so(self):
        second = received(continued(message(), most=1))
        with self.assertRaisesRegex(CannotContinue, r"'T' has continued 1 times .* \(max_continuations\)"):
            continued(second, most=1)

    def test_without_the_message_attributes_it_names_the_remedy(self):
        with self.assertRaisesRegex(CannotContinue, r'message_attribute_names=\["All"\]'):
            continued(message(), has_attributes=False)

    def test_it_stays_in_its_group_and_on_fifo_has_an_id_of_its_own(self):
        fair = continued(message({"MessageGroupId": "g"}))
        self.assertEqual("g", fair["MessageGroupId"])
        self.assertNotIn("MessageDeduplicationId", fair)
        fifo = continued(message(FIFO))
        self.assertEqual(("g", "first-id-1"), (fifo["MessageGroupId"], fifo["MessageDeduplicationId"]))

    def test_a_delay_is_sent_and_refused_on_fifo(self):
        self.assertEqual(60, continued(message(), delay=60)["DelaySeconds"])
        with self.assertRaisesRegex(CannotContinue, "FIFO"):
            continued(message(FIFO), delay=60)

    def test_what_sqs_would_refuse_is_refused_before_anything_is_sent(self):
        with self.assertRaisesRegex(CannotContinue, "1,048,576"):
            continued(message(), text="x" * MAX_MESSAGE_BYTES)
        with self.assertRaisesRegex(CannotContinue, "10 message attributes"):
            continued(message(**attributes(10)))
        cycle = []
        cycle.append(cycle)
        with self.assertRaisesRegex(CannotContinue, "cannot be written as JSON"):
            continued(message(), cycle=cycle)

    def test_an_attribute_of_that_name_that_is_not_ours_counts_as_nothing(self):
        for value in ("no json", "[1]", '{"continuation": true, "first_id": 3}', '{"continuation": -1}', "[" * 9000):
            found = chain_of(message(sqstaskmaster={"StringValue": value, "DataType": "String"}))
            self.assertEqual(Chain(), found)
        self.assertEqual(Chain(), chain_of(LocalMessage("x")))


class SentOnTest(unittest.TestCase):
    """What holds for all three: a successor, a dead letter, and one that is redriven."""

    def requests(self, of):
        yield continued(of)
        yield dead_letter(of, "T", ValueError("why"), "host")
        yield redriven(of, fifo="MessageDeduplicationId" in of.attributes)

    def test_where_ours_has_no_room_the_senders_name_gives_way_and_nothing_of_the_users(self):
        for request in itertools.islice(self.requests(message(service_name=TRACE, **attributes(9))), 2):
            self.assertEqual({*attributes(9), "sqstaskmaster"}, set(request["MessageAttributes"]))
        for request in itertools.islice(self.requests(message(service_name=TRACE, **attributes(8))), 2):
            self.assertEqual({*attributes(8), "service_name", "sqstaskmaster"}, set(request["MessageAttributes"]))

    def test_the_trace_header_of_aws_goes_along(self):
        for request in self.requests(message({"AWSTraceHeader": HEADER})):
            self.assertEqual(
                {"AWSTraceHeader": {"StringValue": HEADER, "DataType": "String"}}, request["MessageSystemAttributes"]
            )
        for request in self.requests(message()):
            self.assertNotIn("MessageSystemAttributes", request)

    def test_two_messages_of_one_deduplication_id_are_sent_on_by_two(self):
        first, second = message(FIFO), message(FIFO)
        second.message_id = "second-id"
        for one, other in zip(self.requests(first), self.requests(second)):
            self.assertNotEqual(one["MessageDeduplicationId"], other["MessageDeduplicationId"])
        for one, again in zip(self.requests(first), self.requests(first)):
            self.assertEqual(one["MessageDeduplicationId"], again["MessageDeduplicationId"])

    def test_a_message_without_an_id_of_sqs_goes_by_its_own(self):
        nameless = message(FIFO)
        nameless.message_id = None
        self.assertEqual(["d-1", "d", "d"], [each["MessageDeduplicationId"] for each in self.requests(nameless)])

    def test_an_id_that_sqs_would_not_take_is_hashed(self):
        for odd in ("x" * 128, "two words", "\ud800"):
            nameless = message({**FIFO, "MessageDeduplicationId": odd})
            nameless.message_id = None
            for request in self.requests(nameless):
                self.assertRegex(request["MessageDeduplicationId"], "^([0-9a-f]{64}|x{128})$")


class DeadLetterTest(unittest.TestCase):
    def test_it_is_the_message_itself_with_the_reason(self):
        request = dead_letter(message({"ApproximateReceiveCount": "3"}, trace=TRACE), "T", KeyError("why"), "host", 0)
        self.assertEqual('{"task": "T", "kwargs": {"a": 1}}', request["MessageBody"])
        self.assertEqual(TRACE, request["MessageAttributes"]["trace"])
        said = reason_of(received(request))
        self.assertEqual(
            ("T", "KeyError", "'why'", "3", "1970-01-01T00:00:00Z", "host"),
            tuple(said[name] for name in ("task", "error", "reason", "receive_count", "when", "by")),
        )

    def test_a_continued_task_is_dead_lettered_with_its_chain(self):
        request = dead_letter(received(continued(message())), "T", ValueError("why"), "host")
        self.assertEqual(Chain(1, "first-id", "1700000000000"), chain_of(received(request)))

    def test_a_reason_is_cut_to_what_fits(self):
        long = message()
        long.body = json.dumps({"task": "T", "kwargs": {"x": "y" * (MAX_MESSAGE_BYTES - 600)}})
        request = dead_letter(long, "T", ValueError("z\ud800\x00é" * 5000), "host")
        self.assertLessEqual(message_bytes(request), MAX_MESSAGE_BYTES)
        self.assertTrue(reason_of(received(request))["reason"].startswith("zé"))

    def test_what_does_not_fit_at_all_is_refused(self):
        long = message()
        long.body = "x" * MAX_MESSAGE_BYTES
        with self.assertRaises(CannotContinue):
            dead_letter(long, "T", ValueError("why"), "host")

    def test_a_message_without_a_reason_has_none(self):
        self.assertEqual({}, reason_of(message()))
        self.assertEqual({}, reason_of(received(continued(message()))))

    def test_on_fifo_it_keeps_its_group_and_its_id_is_the_message_id_as_where_sqs_moves_it(self):
        """By the id that it came with, the second message of that id to die within five minutes would be dropped."""
        request = dead_letter(message(FIFO), "T", ValueError(), "host")
        self.assertEqual(("g", "first-id"), (request["MessageGroupId"], request["MessageDeduplicationId"]))

    def test_ours_is_one_attribute(self):
        self.assertEqual("sqstaskmaster", forwarding.ATTRIBUTE)


if __name__ == "__main__":
    unittest.main()
