"""When something has to be done about a job: a time that is over, and nobody acts on, would keep the loop turning."""

import math
import unittest
from unittest import mock

from sqstaskmaster import LocalMessage, LocalQueue, TaskManager
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._service.job import Job, Stage
from sqstaskmaster.errors import HardTimeout


class JobTest(unittest.TestCase):
    def setUp(self):
        source = mock.Mock(manager=TaskManager("memory:job", queue_constructor=LocalQueue))
        self.job = Job(source, LocalMessage("{}", {}), "T", {}, Claim(30, 10, asked_at=0))

    def run_it(self):
        self.job.stage = Stage.RUNNING
        self.job.process = mock.Mock(next_step_at=math.inf)
        self.job.limit_at, self.job.look_at, self.job.memory_at = 100.0, 50.0, 10.0

    def test_while_its_handler_is_made_it_is_the_limit_of_that(self):
        self.job.limit_at = 30.0
        self.assertEqual(30.0, self.job.due())

    def test_while_its_task_runs_it_is_whatever_comes_first(self):
        self.run_it()
        self.assertEqual(10.0, self.job.due())
        self.job.memory_at = math.inf
        self.assertEqual(50.0, self.job.due())
        self.job.process.next_step_at = 5.0
        self.assertEqual(5.0, self.job.due())

    def test_once_it_is_told_to_stop_it_is_the_next_step_of_that_only(self):
        self.run_it()
        self.job.stop(HardTimeout("over"))
        self.job.process.stop.assert_called_once_with()
        self.assertEqual(math.inf, self.job.due())
        self.job.process.next_step_at = 101.0
        self.assertEqual(101.0, self.job.due())

    def test_only_the_first_reason_to_stop_counts(self):
        self.run_it()
        first = HardTimeout("first")
        self.job.stop(first)
        self.job.stop(HardTimeout("second"))
        self.assertIs(first, self.job.stop_reason)
        self.job.process.stop.assert_called_once_with()

    def test_when_its_task_is_gone_there_is_nothing(self):
        self.run_it()
        self.job.stage = Stage.ENDING
        self.assertEqual(math.inf, self.job.due())


if __name__ == "__main__":
    unittest.main()
