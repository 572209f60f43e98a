"""Which queue is polled next: strict priority, and failures that hold up no other queue."""

import logging
import os
import unittest
from unittest import mock

from botocore.exceptions import ClientError, EndpointConnectionError

from sqstaskmaster import ExponentialBackoff, LocalQueue, ProcessMessageHandler, TaskManager, Worker
from sqstaskmaster._service.polling import Polling
from tests.support import ServerTestCase, endpoint
from tests.support.proxy import Proxy

FAILURE = EndpointConnectionError(endpoint_url="http://sqs")


class Done(ProcessMessageHandler):
    def run(self):
        pass


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


class OtherAnswersTest(ServerTestCase):
    """Answers that did not come from SQS, as a gateway in between gives them: JSON, with something else in it."""

    NO_BASE64 = {"Messages": [{"MessageAttributes": {"a": {"BinaryValue": "x"}}}]}
    ANSWERS = [
        *((502, None), (502, "Bad Gateway"), (500, []), (400, {"__type": 5})),
        *((200, None), (200, {"Messages": [5]}), (200, NO_BASE64)),
    ]

    def setUp(self):
        super().setUp()
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        patch = mock.patch("sqstaskmaster._service.polling._BACKOFF", ExponentialBackoff(first=0.01, longest=0.01))
        patch.start()
        self.addCleanup(patch.stop)
        self.polls = 0

    def answer(self, request):
        if request.operation == "ReceiveMessage":
            self.polls += 1
            if self.polls <= len(self.ANSWERS):
                return self.ANSWERS[self.polls - 1]
        return request.forward()

    def run_one(self, **slots):
        url = self.create_queue()
        with mock.patch.dict(
            os.environ, AWS_ENDPOINT_URL=Proxy(self, endpoint(), self.answer).url, AWS_MAX_ATTEMPTS="1"
        ):
            worker = Worker(TaskManager(url), {"T": Done}, wait_time=0, **slots)
            self.sqs.send_message(QueueUrl=url, MessageBody='{"task": "T", "kwargs": {}}')
            self.assertEqual({"done": 1}, dict(worker.run(burst=True)))
        self.assertGreater(self.polls, len(self.ANSWERS))
        self.assertEqual((0, 0, 0), self.counts(url))

    def test_a_worker_polls_on(self):
        self.run_one()

    def test_a_worker_with_slots_polls_on(self):
        self.run_one(slots=2)

    def test_what_a_queue_of_the_users_own_raises_ends_the_worker(self):
        def no_such_attribute(queue, **kwargs):
            return queue.no_such_attribute

        def no_such_call(queue, **kwargs):
            return self.sqs.recieve_message(**kwargs)

        def wrong_call(queue, **kwargs):
            return self.sqs.receive_message(kwargs)

        for receive in (no_such_attribute, no_such_call, wrong_call):
            for slots in ({}, {"slots": 2}):
                kind = type("Broken", (LocalQueue,), {"receive_messages": receive})
                worker = Worker(TaskManager("broken", queue_constructor=kind), {"T": Done}, wait_time=0, **slots)
                with self.subTest(receive, **slots), self.assertRaises((AttributeError, TypeError)):
                    worker.run(burst=True)


if __name__ == "__main__":
    unittest.main()
