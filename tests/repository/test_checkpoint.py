"""The example of a task that hands its state over, run as it is, against a real SQS server."""

import json
import pathlib
import signal
import tempfile

from tests.repository.test_examples import EXAMPLES, ExampleTestCase
from tests.support import Script, wait_until


class CheckpointTest(ExampleTestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.steps = self.folder / "steps"

    def steps_done(self):
        return [int(step) for step in self.steps.read_text().split()] if self.steps.exists() else []

    def start(self, **options):
        options = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        return Script(self, (EXAMPLES / "checkpoint" / "worker.py").read_text(), self.queue, *options)

    def test_stopped_and_resumed_three_times_it_does_every_step_once_and_no_receive_is_counted(self):
        self.produce("checkpoint", "--steps", 40, "--seconds", 0.1, "--path", self.folder)
        for _ in range(3):
            worker = self.start()
            done = len(self.steps_done())
            wait_until(lambda: len(self.steps_done()) > done, "it does a step")
            self.assertEqual(0, worker.end(signal.SIGTERM), worker.lines())
            continued = worker.wait_for("Task train continued: message ")
            self.assertIn(", receive 1, ", continued)
            self.assertEqual((1, 0, 0), self.counts(self.queue))
        worker = self.start()
        finished = worker.wait_for("Task train done: message ")
        self.assertRegex(finished, "receive 1, .* continuation 3")
        self.assertEqual(0, worker.end(signal.SIGTERM))
        self.assertEqual(list(range(40)), self.steps_done())
        self.assertEqual(sum(range(40)), json.loads((self.folder / "state-40").read_text())["sum"])
        self.assertEqual((0, 0, 0), self.counts(self.queue))

    def test_near_its_hard_timeout_it_goes_on_with_a_new_one(self):
        self.produce("checkpoint", "--steps", 6, "--seconds", 1, "--path", self.folder)
        worker = self.start(hard_timeout=5)
        worker.wait_for("Task train done: message ")
        worker.wait_for("Task train continued: message ")
        self.assertEqual(0, worker.end(signal.SIGTERM))
        self.assertEqual(list(range(6)), self.steps_done())
