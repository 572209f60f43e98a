"""The examples, run as they are, against a real SQS server, with the real solver and the real trainer."""

import os
import pathlib
import re
import signal
import sys
import tempfile

from tests.support import Script, ServerTestCase, wait_until
from tests.support.extras import need

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"

VISIBILITY_SECONDS = 2
HARD_TIMEOUT_SECONDS = 3


class ExampleTestCase(ServerTestCase):
    def setUp(self):
        super().setUp()
        self.queue = self.create_queue()

    def produce(self, example, *arguments):
        producer = Script(self, (EXAMPLES / example / "producer.py").read_text(), self.queue, *arguments)
        self.assertEqual(producer.process.wait(60), 0, producer.lines())

    def worker(self, example, hard_timeout=600):
        options = ("--sqs-timeout", VISIBILITY_SECONDS, "--hard-timeout", hard_timeout)
        return Script(self, (EXAMPLES / example / "worker.py").read_text(), self.queue, *options)

    def runs_once_beside_a_competing_worker(self, example, started, finished):
        """The line of the finish. `started` and `finished` are what the workers log."""
        workers = [self.worker(example), self.worker(example)]

        def lines(text):
            return [line for worker in workers for line in worker.lines() if text in line]

        wait_until(lambda: lines(finished) and self.counts(self.queue) == (0, 0, 0), "the task is done and deleted")
        self.assertEqual(len(lines(started)), 1)
        self.assertEqual(len(lines(finished)), 1)
        for worker in workers:
            worker.end()
        return lines(finished)[0]

    def is_stopped_inside_the_call(self, example, call):
        """At the hard timeout, with the stack saying that `call`, a line of the worker's `run`, was where it hung."""
        worker = self.worker(example, HARD_TIMEOUT_SECONDS)
        finished = worker.wait_for(" timed out: message ")
        worker.end()
        seconds = float(re.search(r", ran ([\d.]+) s", finished)[1])
        # term_grace is 1, and the machine may be busy. The call itself takes minutes.
        self.assertLess(seconds, HARD_TIMEOUT_SECONDS + 1 + 10)
        output = "\n".join(worker.lines())
        self.assertIn("HardTimeout", output)
        stack = output.partition("Current thread")[2].partition("HardTimeout")[0]
        self.assertIn("in run\n", stack)
        self.assertIn(call, stack)
        message = wait_until(lambda: self.receive(self.queue), "the message comes back")[0]
        self.assertGreaterEqual(int(message["Attributes"]["ApproximateReceiveCount"]), 2)

    def four_run_at_once_in_one_worker(self, example, started):
        """With slots: all four begin before the first has ended, none a second time, and all are done."""
        source = (EXAMPLES / example / "service.py").read_text()
        path = os.pathsep.join([str(EXAMPLES / example), *sys.path])
        worker = Script(
            self,
            source,
            QUEUE_URL=self.queue,
            SQS_TIMEOUT=str(2 * VISIBILITY_SECONDS),
            WAIT_TIME="1",
            PYTHONPATH=path,
            # Eight threads on few processors, which else wait for each other in busy loops, for minutes.
            OMP_WAIT_POLICY="passive",
        )

        def lines(text):
            return [number for number, line in enumerate(worker.lines()) if text in line]

        wait_until(lambda: len(lines(" done: message ")) == 4, "all four are done")
        wait_until(lambda: self.counts(self.queue) == (0, 0, 0), "all four are deleted")
        self.assertEqual(4, len(lines(started)))
        self.assertLess(max(lines(started)), min(lines(" done: message ")))
        self.assertEqual(0, worker.end(signal.SIGTERM))


class OrToolsTest(ExampleTestCase):
    def setUp(self):
        need("ortools", "ortools")
        super().setUp()

    def test_a_solve_longer_than_the_visibility_timeout_runs_once_beside_a_competing_worker(self):
        self.produce("ortools_schedule", "--seconds", 2.5 * VISIBILITY_SECONDS)
        finished = self.runs_once_beside_a_competing_worker("ortools_schedule", "Scheduling", "Scheduled")
        self.assertRegex(finished, "'makespan': [0-9]+, 'status': 'FEASIBLE'")

    def test_a_runaway_solve_is_stopped_inside_the_solver_with_its_stack_told(self):
        self.produce("ortools_schedule")
        self.is_stopped_inside_the_call("ortools_schedule", "status = solver.solve(model)")

    def test_four_solves_run_at_once_in_one_worker_that_imports_the_solver_once(self):
        for _ in range(4):
            self.produce("ortools_schedule", "--seconds", 3 * VISIBILITY_SECONDS)
        self.four_run_at_once_in_one_worker("ortools_schedule", "Scheduling")


class XGBoostTest(ExampleTestCase):
    def setUp(self):
        need("xgboost", "xgboost")
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = os.path.join(folder.name, "model.ubj")

    def test_a_training_round_longer_than_the_visibility_timeout_runs_once_beside_a_competing_worker(self):
        longest, trees = 0.0, 10
        while longest <= VISIBILITY_SECONDS:  # a faster machine gets more to do
            self.produce("xgboost_train", "--rounds", 1, "--trees", trees, "--path", self.model)
            finished = self.runs_once_beside_a_competing_worker("xgboost_train", "Training", "Trained")
            longest, trees = float(re.search(r"'longest_round': ([\d.]+)", finished)[1]), trees * 3
        self.assertTrue(os.path.getsize(self.model))

    def test_a_runaway_round_is_stopped_inside_the_trainer_with_its_stack_told(self):
        self.produce("xgboost_train", "--rounds", 1, "--trees", 100_000, "--path", self.model)
        self.is_stopped_inside_the_call("xgboost_train", "model.update(data, number)")
        self.assertFalse(os.path.exists(self.model))

    def test_four_trainings_run_at_once_in_one_worker_that_imports_the_trainer_once(self):
        for _ in range(4):
            self.produce("xgboost_train", "--rounds", 3, "--trees", 20, "--path", self.model)
        self.four_run_at_once_in_one_worker("xgboost_train", "Training")
