"""What the pages show, run where it takes more than to run a file to its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import unittest

from tests import support
from tests.support.blocks import ROOT
from tests.support.pages import PageTestCase

HOWTO = ROOT / "docs" / "howto"


class TestHangingTask(PageTestCase):
    page = ROOT / "docs" / "tutorial" / "hanging-task.rst"

    def test_the_task_that_hangs_is_stopped_and_its_line_is_shown(self):
        self.change("hanging.py", "hard_timeout=20", "hard_timeout=2, term_grace=0.1")
        found = self.run_to_its_end("-m", "sqstaskmaster", "run", "hanging:worker", "AddUp", "digits=12")
        self.assertEqual(1, found.returncode, found.stderr)
        self.assertIn("print(sum(range(10**digits)))", found.stderr)
        self.assertIn("timed out", found.stderr)


class TestIdempotentTasks(PageTestCase):
    page = HOWTO / "idempotent-tasks.rst"

    def test_a_bill_that_is_written_twice_is_one_bill(self):
        self.change("bills.py", "/shared/bills.db", self.path("bills.db"))
        for _ in range(2):
            found = self.run_to_its_end("-m", "sqstaskmaster", "run", "bills:worker", "Bill", "order=A17", "cents=900")
            self.assertEqual(0, found.returncode, found.stderr)
        with contextlib.closing(sqlite3.connect(self.path("bills.db"))) as database:
            self.assertEqual([("A17", 900)], database.execute("SELECT * FROM bills").fetchall())


class TestProduceMillions(PageTestCase):
    page = HOWTO / "produce-millions.rst"

    def test_many_are_produced(self):
        self.change("produce_many.py", "1_000_000", "25")
        produced = self.run_to_its_end("produce_many.py")
        self.assertEqual(produced.returncode, 0, produced.stderr)
        self.assertIn("25 sent", produced.stdout)
        self.assertEqual(self.counts(self.url), (25, 0, 0))


class TestLongerThanTwelveHours(PageTestCase):
    page = HOWTO / "longer-than-twelve-hours.rst"

    def test_a_task_that_is_stopped_goes_on_where_it_was(self):
        self.sqs.send_message(QueueUrl=self.url, MessageBody='{"task": "Count", "kwargs": {"to": 20}}')
        worker = self.script("long_service.py")
        worker.wait_for("counted to 1")
        self.assertEqual(0, worker.end(signal.SIGTERM), worker.lines())
        self.assertEqual((1, 0, 0), self.counts(self.url))
        second = self.script("long_service.py")
        second.wait_for("counted to 20")
        support.wait_until(lambda: self.counts(self.url) == (0, 0, 0), "the message is deleted")
        counted = [line for each in (worker, second) for line in each.lines() if line.startswith("counted")]
        self.assertEqual([f"counted to {number}" for number in range(1, 21)], counted)

    def test_a_task_that_does_not_look_answers_its_end_with_where_it_is(self):
        self.change("answer.py", "1_000_000", "10**15")
        self.write("serve.py", "from answer import worker\n\nworker.shutdown_grace = 0\nworker.run()\n")
        self.sqs.send_message(QueueUrl=self.url, MessageBody='{"task": "Compute", "kwargs": {}}')
        worker = self.script("serve.py")
        worker.wait_for("computing from 0")
        self.assertEqual(0, worker.end(signal.SIGTERM), worker.lines())
        (successor,) = self.receive(self.url)
        self.assertGreater(json.loads(successor["Body"])["kwargs"]["step"], 0)


class TestScale(PageTestCase):
    page = HOWTO / "scale.rst"

    @unittest.skipIf(os.environ.get("SQSTASKMASTER_TEST_ENDPOINT"), "the endpoint given may know no ECS")
    def test_the_provisioner_scales_its_service(self):
        ecs = support.client("ecs")
        ecs.create_cluster(clusterName="workers")
        ecs.register_task_definition(
            family="train", containerDefinitions=[{"name": "train", "image": "train", "memory": 128}]
        )
        ecs.create_service(cluster="workers", serviceName="train", taskDefinition="train", desiredCount=0)
        self.addCleanup(ecs.delete_cluster, cluster="workers")
        self.addCleanup(ecs.delete_service, cluster="workers", service="train", force=True)

        def scaled():
            found = self.run_to_its_end("provision.py")
            self.assertEqual(found.returncode, 0, found.stderr)
            return ecs.describe_services(cluster="workers", services=["train"])["services"][0]["desiredCount"]

        self.sqs.send_message(QueueUrl=self.url, MessageBody="{}")
        self.assertEqual(scaled(), 4)
        self.sqs.purge_queue(QueueUrl=self.url)
        self.assertEqual(scaled(), 0)


if __name__ == "__main__":
    unittest.main()
