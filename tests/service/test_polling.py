"""Which queue is polled next: strict priority, and failures that hold up no other queue."""

import logging
import unittest

from botocore.exceptions import ClientError, EndpointConnectionError

from sqstaskmaster._service.polling import Polling

FAILURE = EndpointConnectionError(endpoint_url="http://sqs")


class PollingTest(unittest.TestCase):
    def polling(self, *queues, wait_time=20):
        self.logged = []
        return Polling(
            queues, wait_time, lambda level, text, *values, extra: self.logged.append((level, text % values))
        )

    def test_a_single_queue_waits_as_long_as_was_asked_and_several_a_second(self):
        self.assertEqual(20, self.polling("a").wait_time)
        self.assertEqual(1, self.polling("a", "b").wait_time)
        self.assertEqual(0, self.polling("a", "b", wait_time=0).wait_time)

    def test_a_later_queue_is_polled_only_after_an_empty_poll_of_each_earlier_one(self):
        polling = self.polling("a", "b", "c")
        order = []
        for number in (0, 1, 0, 0, 0, 0, 2):
            queue = polling.next(now=0)
            order.append(queue)
            polling.answered(queue, number)
        self.assertEqual(["a", "b", "a", "b", "c", "a", "b"], order)
        self.assertEqual("a", polling.next(now=0))

    def test_all_are_empty_when_each_has_said_so_since_something_last_came(self):
        polling = self.polling("a", "b")
        polling.answered("a", 0)
        self.assertFalse(polling.all_empty)
        polling.answered("b", 0)
        self.assertTrue(polling.all_empty)
        polling.busy()
        self.assertFalse(polling.all_empty)
        polling.answered("a", 0)
        polling.answered("b", 1)
        self.assertFalse(polling.all_empty)

    def test_a_queue_that_fails_is_passed_over_until_its_next_try(self):
        polling = self.polling("a", "b")
        self.assertIsNone(polling.failed("a", FAILURE, now=100))
        self.assertEqual("b", polling.next(now=100))
        polling.answered("b", 0)
        due = polling._states[0].retry_at
        self.assertTrue(100 <= due <= 101, "the first pause is at most a second")
        self.assertEqual("a", polling.next(now=due))

    def test_while_every_queue_waits_there_is_none_to_poll_and_a_time_when_there_is(self):
        polling = self.polling("a")
        polling._states[0].retry_at = 50
        self.assertIsNone(polling.next(now=49))
        self.assertEqual(50, polling.due())

    def test_a_failure_is_told_once_and_its_end_too(self):
        polling = self.polling("a")
        for _ in range(3):
            polling.failed("a", FAILURE, now=0)
        polling.answered("a", 0)
        polling.answered("a", 0)
        self.assertEqual([logging.WARNING, logging.INFO], [level for level, _ in self.logged])
        self.assertIn("after 3 failures", self.logged[1][1])

    def test_what_cannot_succeed_names_its_remedy(self):
        polling = self.polling("a", "b")
        gone = ClientError({"Error": {"Code": "AWS.SimpleQueueService.NonExistentQueue", "Message": "no"}}, "R")
        self.assertIn("check the queue's URL", polling.failed("a", gone, now=0))
        self.assertEqual(logging.ERROR, self.logged[0][0])
        alone = self.polling("a")
        self.assertIn("check the queue's URL", alone.failed("a", gone, now=0))
        self.assertEqual([], self.logged, "a single one ends the worker, which says it")


if __name__ == "__main__":
    unittest.main()
