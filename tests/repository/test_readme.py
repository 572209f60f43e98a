"""The README holds what it shows: every block of it is run, and its commands and its picture are those there are."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import unittest

from sqstaskmaster._cli.demo import picture
from sqstaskmaster._cli.demo.scenarios import SCENARIOS
from tests import support
from tests.support.blocks import ROOT, python_files
from tests.support.pages import PageTestCase

README = ROOT / "README.rst"

SETUP_COMMAND = re.compile(r"^ +(python3 -m venv .*)$", re.MULTILINE)


@functools.cache
def readme():
    return README.read_text(encoding="utf-8")


class TestReadme(unittest.TestCase):
    def test_it_is_read_in_one_go(self):
        self.assertLessEqual(len(readme().splitlines()), 150)

    def test_every_python_block_is_a_file_that_these_tests_run(self):
        self.assertEqual(
            [name for name, _ in python_files(README)],
            ["producer", "service", "tasks", "worker"],
        )

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

    def test_every_file_and_folder_it_names_is_there(self):
        named = re.findall(r"``((?:docs/[\w/]+|[A-Z]+\.rst))``", readme())
        self.assertGreater(len(named), 5)
        self.assertEqual([], [name for name in named if not (ROOT / name).exists() and name != "docs/build"])


class TestReadmeScripts(PageTestCase):
    """The README's files, put side by side and run as processes against a real SQS server."""

    page = README

    def test_what_the_producer_publishes_the_worker_consumes(self):
        produced = self.run_to_its_end("producer.py")
        self.assertEqual(produced.returncode, 0, produced.stderr)
        self.assertEqual(self.counts(self.url), (1, 0, 0))
        worker = self.script("worker.py")
        worker.wait_for("2262 primes below 20000")
        worker.wait_for("CountPrimes done")
        self.assertEqual(self.counts(self.url), (0, 0, 0))

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


if __name__ == "__main__":
    unittest.main()
