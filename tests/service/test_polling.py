"""Which queue is polled next: strict priority, and failures that hold up no other queue."""

import logging
import os
import unittest
from unittest import mock

from botocore.exceptions import ClientError, EndpointConnectionError

from sqstaskmaster import ExponentialBackoff, LocalQueue, ProcessMessageHandler, TaskManager, Worker
from sqstaskmaster._service.polling import Polling
from sqstaskmaster.errors import PollRefused
from tests.support import ServerTestCase, endpoint
from tests.support.proxy import Proxy

FAILURE = EndpointConnectionError(endpoint_url="http://sqs")


class Done(ProcessMessageHandler):
    def run(self):
        pass


def refused(code="AWS.SimpleQueueService.NonExistentQueue"):
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "ReceiveMessage")


class PollingTest(unittest.TestCase):
    def polling(self, *queues, wait_time=20):
        self.logged = []
        return Polling(
            queues, wait_time, lambda level, text, *values, **more: self.logged.append((level, text % values))
        )

    def poll(self, polling, now=0):
        """The queue that is polled now."""
        queue = polling.next(now)
        if queue is not None:
            polling.sent(queue, now)
        return queue

    def fail(self, polling, queue, error, now):
        polling.sent(queue, now)
        polling.failed(queue, error, f"http://{queue}", now)

    def test_a_single_queue_waits_as_long_as_was_asked_and_several_a_second(self):
        self.assertEqual(20, self.polling("a").wait_time)
        self.assertEqual(1, self.polling("a", "b").wait_time)
        self.assertEqual(0, self.polling("a", "b", wait_time=0).wait_time)

    def test_a_later_queue_is_polled_only_after_an_empty_poll_of_each_earlier_one(self):
        polling = self.polling("a", "b", "c")
        order = []
        for number in (0, 1, 0, 0, 0, 0, 2):
            queue = self.poll(polling)
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

    def test_while_a_poll_is_under_way_there_is_no_other_until_it_is_overdue(self):
        polling = self.polling("a", "b")
        self.assertEqual("a", self.poll(polling, now=100))
        self.assertIsNone(polling.next(now=102.9))
        self.assertEqual(103, polling.due(now=100), "a second of waiting, and two")
        self.assertEqual("b", self.poll(polling, now=103))
        self.assertEqual(2, polling.out)
        polling.answered("b", 0)
        self.assertEqual("b", self.poll(polling, now=104), "and the first queue has no other poll until it has ended")
        polling.answered("b", 0)
        polling.answered("a", 1)
        self.assertEqual("a", polling.next(now=104))

    def test_a_queue_that_fails_is_passed_over_until_its_next_try(self):
        polling = self.polling("a", "b")
        self.fail(polling, "a", FAILURE, 100)
        self.assertEqual("b", self.poll(polling, now=100))
        polling.answered("b", 0)
        self.assertEqual("b", polling.next(now=100.9))
        self.assertEqual("a", self.polling_after_a_second(polling))

    def polling_after_a_second(self, polling):
        polling.answered("b", 0)
        return polling.next(now=101)

    def test_while_every_queue_waits_there_is_none_to_poll_and_a_time_when_there_is(self):
        polling = self.polling("a")
        self.fail(polling, "a", FAILURE, 49)
        self.assertIsNone(polling.next(now=49.5))
        self.assertEqual(50, polling.due(now=49.5), "the first pause is a second")

    def test_a_failure_is_told_once_for_each_kind_and_its_end_too(self):
        polling = self.polling("a")
        for error in (FAILURE, refused("InternalError"), FAILURE, refused("InternalError")):
            self.fail(polling, "a", error, 0)
        polling.answered("a", 0)
        polling.answered("a", 0)
        self.assertEqual([logging.WARNING] * 2 + [logging.INFO], [level for level, _ in self.logged])
        self.assertIn("after 4 failures", self.logged[-1][1])

    def test_what_a_first_poll_cannot_do_is_refused_for_good_and_names_its_remedy(self):
        polling = self.polling("a", "b")
        self.fail(polling, "a", refused(), 0)
        self.assertRegex(self.logged[0][1], "no longer polled: a: .*check the queue's URL")
        self.assertEqual(logging.ERROR, self.logged[0][0])
        self.assertIsNone(polling.refused, "the other queue goes on")
        self.assertEqual("b", polling.next(now=10**6))
        self.fail(polling, "b", KeyError("of the user's own"), 0)
        self.assertIn("check the queue's URL", str(polling.refused), "what the first of them said")
        self.assertIsNone(polling.next(now=10**6))
        self.assertEqual(1, len(self.logged), "what ends the worker is said at its end")

    def test_a_queue_that_was_polled_before_is_refused_for_good_after_five_minutes_only(self):
        for error in (refused("AccessDenied"), KeyError("what a provider of credentials answered")):
            with self.subTest(error):
                polling = self.polling("a")
                polling.answered("a", 1)
                for now in (100, 101, 399):
                    self.fail(polling, "a", error, now)
                self.assertIsNone(polling.refused)
                self.assertEqual([logging.ERROR], [level for level, _ in self.logged])
                self.fail(polling, "a", error, 400)
                self.assertIsNotNone(polling.refused)

    def test_a_success_in_between_and_a_failure_of_another_kind_begin_the_five_minutes_anew(self):
        for between in (
            lambda polling: polling.answered("a", 0),
            lambda polling: self.fail(polling, "a", FAILURE, 300),
        ):
            polling = self.polling("a")
            polling.answered("a", 1)
            self.fail(polling, "a", refused("AccessDenied"), 100)
            between(polling)
            self.fail(polling, "a", refused("AccessDenied"), 500)
            self.assertIsNone(polling.refused)


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
                with self.subTest(receive, **slots), self.assertRaises(PollRefused) as refused:
                    worker.run(burst=True)
                self.assertIsInstance(refused.exception.__cause__, (AttributeError, TypeError))


if __name__ == "__main__":
    unittest.main()
