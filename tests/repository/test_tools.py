"""What is written in several places, for several tools, is the same in all of them."""

import configparser
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

import docutils.core
import yaml
from packaging.requirements import Requirement

import sqstaskmaster
from tests.support import DEADLINE_SECONDS, stop, wait_until, whole_lines
from tests.support.commands import alive

ROOT = pathlib.Path(__file__).resolve().parents[2]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read_string(read("setup.cfg"))
    return parser


def requirements():
    """{extra, or "" for what everybody needs: its requirements}"""
    config = setup_cfg()
    listed = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: [Requirement(line) for line in lines.splitlines() if line and not line.startswith("#")]
        for extra, lines in listed.items()
    }


def supported():
    """The Pythons of the classifiers, oldest first."""
    return re.findall(r"^Programming Language :: Python :: (3\.\d+)$", setup_cfg()["metadata"]["classifiers"], re.M)


class TestPythons(unittest.TestCase):
    def test_the_supported_pythons_are_those_that_ci_looks_for(self):
        self.assertEqual(re.search(r'^supported="(.*)"$', read(".ci/run"), re.M)[1].split(), supported())
        self.assertEqual(yaml.safe_load(read(".travis.yml"))["python"], supported())

    def test_every_tool_knows_the_oldest_python(self):
        oldest = supported()[0]
        self.assertEqual(setup_cfg()["options"]["python_requires"], f">={oldest}")
        project = read("pyproject.toml")
        self.assertIn(f'target-version = ["py{oldest.replace(".", "")}"]', project)
        self.assertIn(f'python_version = "{oldest}"', project)

    def test_newcomers_are_told_the_oldest_python(self):
        for name in ("README.rst", "CONTRIBUTING.rst"):
            self.assertIn(f"Python {supported()[0]} or newer", read(name), name)


@unittest.skipUnless(shutil.which("bash"), "it is written for bash")
class TestCi(unittest.TestCase):
    def test_however_it_is_ended_no_process_of_its_step_is_left(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with self.subTest(number.name):
                folder = tempfile.TemporaryDirectory()
                self.addCleanup(folder.cleanup)
                root = pathlib.Path(folder.name)
                (root / ".ci").mkdir()
                (root / "constraints.txt").touch()
                (root / "step").write_text("sleep 3600 & echo $$ $! >>pids; wait\n")
                functions = read(".ci/run").partition("\ndemo=")[0]
                (root / ".ci" / "run").write_text(f"{functions}\necho >>pids $$\nstep 'a step' bash step\n")
                (root / "pids").touch()
                environment = {**os.environ, "TMPDIR": folder.name}
                run = subprocess.Popen(["bash", ".ci/run"], cwd=root, env=environment, stdout=subprocess.DEVNULL)
                self.addCleanup(stop, run)
                wait_until(lambda: len(whole_lines(root / "pids")) == 2, "the step runs")
                pids = [int(pid) for line in whole_lines(root / "pids") for pid in line.split()]
                run.send_signal(number)
                run.wait(DEADLINE_SECONDS)
                wait_until(lambda: not any(map(alive, pids)), "all are gone", 5)


class TestConstraints(unittest.TestCase):
    def test_every_requirement_has_one_release_that_it_allows_on_every_python(self):
        pinned = [Requirement(line) for line in read("constraints.txt").splitlines() if not line.startswith("#")]
        building = Requirement(re.search(r'^requires = \["(.*)"\]$', read("pyproject.toml"), re.M)[1])
        for python in supported():
            here = {"python_version": python, "python_full_version": f"{python}.99", "sys_platform": "linux"}
            found = {}
            for each in pinned:
                if each.marker is None or each.marker.evaluate(here):
                    found.setdefault(each.name, []).append(str(each.specifier).removeprefix("=="))
            wanted = [building, *(each for listed in requirements().values() for each in listed)]
            for needed in [each for each in wanted if each.marker is None or each.marker.evaluate(here)]:
                with self.subTest(python=python, needed=str(needed)):
                    (release,) = found[needed.name]
                    self.assertIn(release, needed.specifier)

    def test_the_oldest_boto3_and_the_oldest_botocore_are_one_release(self):
        oldest = {each.name: re.fullmatch(r">=1\.(\d+)\.(\d+)", str(each.specifier)) for each in requirements()[""]}
        boto3, botocore = oldest["boto3"], oldest["botocore"]
        self.assertEqual((int(boto3[1]) + 3, boto3[2]), (int(botocore[1]), botocore[2]))


class TestTools(unittest.TestCase):
    def test_what_runs_before_a_commit_are_tools_that_ci_runs(self):
        (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
        entries = [hook["entry"] for hook in repository["hooks"]]
        self.assertEqual(entries, [".venv/bin/black", ".venv/bin/flake8", ".venv/bin/mypy"])
        for entry in entries:
            self.assertRegex(read(".ci/run"), rf'(?m)^step "[^"]*" {re.escape(entry)}( |$)')

    def test_the_tools_are_in_the_extra_for_development(self):
        named = {each.name for each in requirements()["dev"]}
        commands = set(re.findall(r"\.venv/bin/(\w[\w-]*)", read(".ci/run"))) | {"coverage", "pre-commit"}
        self.assertLessEqual(commands - {"python", "pip"}, named)

    def test_what_the_commands_draw_with_is_in_the_extra_for_development_too(self):
        extras = {extra: {each.name: each for each in listed} for extra, listed in requirements().items()}
        self.assertLessEqual(extras["cli"].items(), extras["dev"].items())

    def test_the_changelog_begins_with_this_version_or_with_what_comes_after_it(self):
        title = re.search(r"(?m)^(\S.*)\n-+$", read("CHANGELOG.rst"))[1]
        self.assertRegex(title, rf"^(Unreleased|{re.escape(sqstaskmaster.__version__)} \(\d{{4}}-\d\d-\d\d\))$")

    def test_every_page_at_the_top_is_well_formed(self):
        for path in sorted(ROOT.glob("*.rst")):
            with self.subTest(path.name):
                docutils.core.publish_string(
                    path.read_text(encoding="utf-8"), settings_overrides={"report_level": 2, "halt_level": 2}
                )


if __name__ == "__main__":
    unittest.main()
