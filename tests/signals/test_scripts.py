"""Producers and workers as a user would write them, as processes of their own, on a real SQS server over HTTP."""

import signal
import time
import unittest

from tests.support import Script, ServerTestCase, wait_until

PRODUCER = """
import sys
from sqstaskmaster import TaskManager

answer = TaskManager(sys.argv[1], sender_name="producer").submit(sys.argv[2], seconds=float(sys.argv[3]))
print("sent", answer["MessageId"])
"""

# Visibility 3 s, an extension each second: a task of three times its visibility timeout takes 9 s.
WORKER = """
import hashlib
import logging
import sys
import time
from sqstaskmaster import MessageHandler, TaskManager

logging.basicConfig(format="%(levelname)s %(message)s")


class Handler(MessageHandler):
    def __init__(self, message, **kwargs):
        super().__init__(message, sqs_timeout=3, alarm_timeout=1, hard_timeout=60)
        self.kwargs = kwargs


class Crunch(Handler):
    def run(self):
        end = time.monotonic() + self.kwargs["seconds"]
        while time.monotonic() < end:
            for _ in range(40_000):
                hashlib.sha256(b"x" * 1000).hexdigest()
            time.sleep(0.05)  # the tests beside this one want the processor too


class CrunchFirst(Handler):
    # For ever, when it is received for the first time; not at all after that.

    def run(self):
        while self._message.attributes["ApproximateReceiveCount"] == "1":
            hashlib.sha256(b"x" * 1000).hexdigest()


class Fail(Handler):
    def run(self):
        raise RuntimeError("the task failed")


class Stopped(Handler):
    # Runs until its claim is lost, and fails then; it would have its message back at once.

    def run(self):
        self.lost = None
        print("running")
        while self.lost is None:
            time.sleep(0.01)
        raise RuntimeError(self.lost)

    def claim_lost(self, exception):
        self.lost = exception
        print("lost", type(exception).__name__)

    def retry_delay(self, exception, receive_count):
        return 0


tasks = {"Crunch": Crunch, "CrunchFirst": CrunchFirst, "Fail": Fail, "Stopped": Stopped}
print("ready")
for task, kwargs, message in TaskManager(sys.argv[1]).task_generator(wait_time=1, sqs_timeout=3):
    print("start", task, message.attributes["ApproximateReceiveCount"])
    with tasks[task](message, **kwargs) as handler:
        handler.run()
    print("end", task, handler.outcome)
"""


class ScriptsTest(ServerTestCase):
    def submit(self, url, task, seconds=0):
        producer = Script(self, PRODUCER, url, task, seconds)
        line = producer.wait_for("sent")
        self.assertEqual(0, producer.process.wait(60))
        return line.split()[1]

    def worker(self, url):
        worker = Script(self, WORKER, url)
        worker.wait_for("ready")
        return worker

    def lines_of(self, workers, word):
        return [line for worker in workers for line in worker.lines() if line.startswith(word)]

    def test_a_task_of_three_times_its_visibility_timeout_runs_once_though_another_worker_waits_for_it(self):
        url = self.create_queue(visibility=3)
        workers = [self.worker(url), self.worker(url)]
        self.submit(url, "Crunch", 9)
        wait_until(lambda: self.lines_of(workers, "end"), "a worker ends the task")
        self.assertEqual(["start Crunch 1"], self.lines_of(workers, "start"))
        self.assertEqual(["end Crunch done"], self.lines_of(workers, "end"))
        # Both go on, and the queue holds nothing that could start again.
        self.assertEqual((0, 0, 0), self.counts(url))
        self.assertEqual([None, None], [worker.process.poll() for worker in workers])

    def test_a_worker_that_was_stopped_for_longer_than_its_claim_leaves_the_message_to_who_has_it_now(self):
        url = self.create_queue(visibility=3)
        worker = self.worker(url)
        self.submit(url, "Stopped")
        worker.wait_for("running")
        worker.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: self.receive(url, wait=1, visibility=60), "another has the message")
        received = time.monotonic()
        # What the claim may have lasted longer by the worker's reckoning, since it counts from the answer.
        wait_until(lambda: time.monotonic() > received + 1, "a second has passed")
        worker.process.send_signal(signal.SIGCONT)
        self.assertEqual("lost ClaimLapsed", worker.wait_for("lost"))
        self.assertEqual("end Stopped failed", worker.wait_for("end Stopped"))
        self.assertEqual((0, 1, 0), self.counts(url))

    def test_a_task_that_fails_comes_back_with_its_receive_count_raised_and_ends_with_the_dead_letters(self):
        url = self.create_queue(visibility=3, max_receive_count=2)
        worker = self.worker(url)
        message_id = self.submit(url, "Fail")
        [dead] = wait_until(lambda: self.receive(self.dead_letters), "the dead-letter queue has it")
        self.assertEqual(message_id, dead["MessageId"])
        self.assertEqual(["start Fail 1", "start Fail 2"], self.lines_of([worker], "start"))
        self.assertEqual(["end Fail failed"] * 2, self.lines_of([worker], "end"))
        self.assertIn("RuntimeError: the task failed", worker.lines())
        self.assertIsNone(worker.process.poll())

    def test_the_task_of_a_worker_that_is_killed_is_run_by_another(self):
        url = self.create_queue(visibility=3)
        killed = self.worker(url)
        self.submit(url, "CrunchFirst")
        killed.wait_for("start CrunchFirst 1")
        self.assertEqual(-signal.SIGKILL, killed.end(signal.SIGKILL))
        self.assertEqual([], self.lines_of([killed], "end"))
        other = self.worker(url)
        other.wait_for("end CrunchFirst done")
        self.assertEqual(["start CrunchFirst 2"], self.lines_of([other], "start"))
        self.assertEqual((0, 0, 0), self.counts(url))


if __name__ == "__main__":
    unittest.main()
