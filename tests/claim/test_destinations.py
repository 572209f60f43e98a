"""Where the redrive policy of a queue leads, and when the queue is asked for it."""

import json
import types
import unittest

from sqstaskmaster._claim.destinations import Origin
from sqstaskmaster._sqs.values import Writer
from tests.support.handling import Clock, client_error


class Queue:
    """A queue of the user's own making, whose redrive policy can be changed."""

    attributes: dict[str, str] = {}
    error = None

    def __init__(self, url="https://sqs/1/tasks"):
        self.url = url
        self.loads = 0

    def send_message(self, **kwargs):
        pass

    def load(self):
        self.loads += 1
        if self.error:
            raise self.error

    def set_policy(self, most):
        policy = {"deadLetterTargetArn": "arn:aws:sqs:eu-west-1:1:dead", "maxReceiveCount": most}
        self.attributes = {"RedrivePolicy": json.dumps(policy)}


class PolicyTest(unittest.TestCase):
    def setUp(self):
        self.queue, self.clock = Queue(), Clock()
        self.queue.set_policy(2)
        self.origin = self.made()
        self.message = types.SimpleNamespace(attributes={"ApproximateReceiveCount": "2"})

    def made(self):
        return Origin(self.queue.url, lambda: self.queue, Queue, Writer(), self.clock)

    def test_it_is_known_for_a_minute_and_then_asked_for_again(self):
        self.assertTrue(self.origin.is_last_receive(self.message))
        self.queue.set_policy(10)
        self.clock.now += 59
        self.assertTrue(self.origin.is_last_receive(self.message))
        self.assertEqual(1, self.queue.loads)
        self.clock.now += 1
        self.assertFalse(self.origin.is_last_receive(self.message))

    def test_one_that_is_added_is_noticed(self):
        self.queue.attributes = {}
        self.assertIsNone(self.origin.dead_letters())
        self.queue.set_policy(2)
        self.clock.now += 60
        self.assertEqual("https://sqs/1/dead", self.origin.dead_letters().url)

    def test_where_it_cannot_be_asked_for_again_the_last_that_was_known_holds(self):
        self.origin.dead_letters()
        self.clock.now += 60
        self.queue.error = client_error("RequestThrottled")
        self.assertEqual("https://sqs/1/dead", self.origin.dead_letters().url)
        with self.assertRaises(type(self.queue.error)):
            self.made().dead_letters()


if __name__ == "__main__":
    unittest.main()
