"""The README holds what it shows: every block of it is run, or at least parsed."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import unittest

from sqstaskmaster._cli.demo import picture
from sqstaskmaster._cli.demo.scenarios import SCENARIOS
from sqstaskmaster._service.exit_codes import MEANINGS
from tests import support

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The queue of the README. A test puts one of its own in its place, as a user would.
QUEUE_URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/train"

SETUP_COMMAND = re.compile(r"^ +(python3 -m venv .*)$", re.MULTILINE)


@functools.cache
def readme():
    return (ROOT / "README.rst").read_text(encoding="utf-8")


def blocks(language):
    """The code blocks of that language, in order, without their indentation."""
    found = re.findall(rf"(?m)^\.\. code-block:: {language}\n\n((?:(?: .*)?\n)+)", readme())
    return [textwrap.dedent(block).strip() + "\n" for block in found]


def files():
    """[(file name, source)] of the Python blocks. The first line of each says the name."""
    return [(re.match(r"# (\w+\.py)\n", block)[1], block) for block in blocks("python")]


class TestReadme(unittest.TestCase):
    def test_every_python_block_is_a_file_that_these_tests_run(self):
        self.assertEqual(
            sorted({name for name, _ in files()}),
            [
                "long_service.py",
                "produce_many.py",
                "producer.py",
                "provision.py",
                "service.py",
                "tasks.py",
                "test_tasks.py",
                "worker.py",
            ],
        )

    def test_every_python_block_compiles(self):
        for name, source in files():
            compile(source, name, "exec")

    def test_the_exit_codes_are_those_of_the_command(self):
        table = re.findall(r"(?m)^(\d+) +(\S.*)$", readme().partition("\nexit  meaning\n")[2])
        self.assertEqual(table, [(str(code.value), meaning) for code, meaning in MEANINGS.items()])

    def test_policies_are_least_privilege(self):
        actions = []
        for block in blocks("json"):
            for statement in json.loads(block)["Statement"]:
                self.assertEqual(statement["Effect"], "Allow")
                self.assertNotIn("*", json.dumps(statement))
                actions += [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        self.assertIn("sqs:ChangeMessageVisibility", actions)
        self.assertFalse([action for action in actions if "List" in action or "Create" in action])

    def test_there_is_one_command_for_the_demo_and_one_for_the_tests_and_ci_runs_both(self):
        commands = SETUP_COMMAND.findall(readme())
        asked = re.findall(r"readme_command '(.*)'", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
        self.assertEqual(len(asked), 2)
        for ending in asked:
            self.assertEqual(len([command for command in commands if command.endswith(ending)]), 1, ending)
        self.assertTrue(any(ending == "-m sqstaskmaster demo" for ending in asked))
        self.assertTrue(any(ending == "-m unittest -v" for ending in asked))

    @unittest.skipUnless(shutil.which("bash"), "there is no bash")
    def test_every_shell_command_parses(self):
        for command in SETUP_COMMAND.findall(readme()):
            subprocess.run(["bash", "-n", "-c", command], check=True, stdin=subprocess.DEVNULL)

    def test_the_picture_is_the_one_the_demo_draws(self):
        rows = [line.strip().split("  ")[0] for line in readme().partition("┬")[2].splitlines()[1:]]
        self.assertEqual(rows[: len(SCENARIOS)], [scenario.title for scenario in SCENARIOS])
        drawn = picture.picture(picture.Plan(["a"], [1], 2, 1, 1, ""), [], 0.0, picture.Look(96))
        legend = drawn[drawn.index("", 2) + 1 :]
        self.assertTrue(legend)
        for line in legend:
            self.assertIn(line.strip(), readme())


class TestReadmeScripts(support.ServerTestCase):
    """The README's files, put side by side and run as processes against a real SQS server."""

    def setUp(self):
        super().setUp()
        self.url = self.create_queue()
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        for name, source in files():
            if not os.path.exists(self.path(name)):  # the first, where there are several
                self.write(name, source)

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def write(self, name, source):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(source.replace(QUEUE_URL, self.url))

    def script(self, name):
        with open(self.path(name), encoding="utf-8") as file:
            return support.Script(self, file.read(), PYTHONPATH=os.pathsep.join([self.folder.name, *sys.path]))

    def run_to_its_end(self, *arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder.name,
            env={**support.environment(), "PYTHONPATH": os.pathsep.join([self.folder.name, *sys.path])},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=support.DEADLINE_SECONDS,
        )

    def produce_and_consume(self):
        produced = self.run_to_its_end("producer.py")
        self.assertEqual(produced.returncode, 0, produced.stderr)
        self.assertEqual(self.counts(self.url), (1, 0, 0))
        worker = self.script("worker.py")
        worker.wait_for("2262 primes below 20000")
        worker.wait_for("CountPrimes done")
        self.assertEqual(self.counts(self.url), (0, 0, 0))

    def test_what_the_producer_publishes_the_worker_consumes(self):
        self.produce_and_consume()

    def test_the_same_scripts_run_with_the_task_in_a_process(self):
        in_process = [source for name, source in files() if name == "tasks.py" and "ProcessMessageHandler" in source]
        self.write("tasks.py", in_process[0])
        self.produce_and_consume()

    def test_many_are_produced(self):
        with open(self.path("produce_many.py"), encoding="utf-8") as file:
            source = file.read().replace("1_000_000", "25")
        self.write("produce_many.py", source)
        produced = self.run_to_its_end("produce_many.py")
        self.assertEqual(produced.returncode, 0, produced.stderr)
        self.assertIn("25 sent", produced.stdout)
        self.assertEqual(self.counts(self.url), (26, 0, 1))

    def produce_and_serve(self, name):
        worker = self.script(name)
        self.run_to_its_end("producer.py")
        worker.wait_for("2262 primes below 20000")
        support.wait_until(lambda: self.counts(self.url) == (0, 0, 0), "the message is deleted")

    # Two tests, on a queue each: the last poll of a worker that is killed would take the other's message.
    def test_the_worker_runs_as_a_script(self):
        self.produce_and_serve("service.py")

    def test_the_worker_runs_from_the_command_line(self):
        self.write("command.py", "from sqstaskmaster._cli.main import main\n\nmain(['worker', 'service:worker'])\n")
        self.produce_and_serve("command.py")

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

    def test_the_test_without_aws_passes_with_each_of_the_handlers_shown(self):
        handlers = [source for name, source in files() if name == "tasks.py"]
        self.assertEqual(len(handlers), 2)
        for source in handlers:
            self.write("tasks.py", source)
            found = self.run_to_its_end("-B", "-m", "unittest", "test_tasks")
            self.assertEqual(found.returncode, 0, found.stderr)
            self.assertIn("Ran 1 test", found.stderr)

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
