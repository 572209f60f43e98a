"""Every code block of the pages is run, type-checked, or at least parsed, as its language allows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from sqstaskmaster._cli.main import _parse
from tests import support
from tests.support.blocks import ROOT, as_modules, blocks, commands
from tests.support.extras import need
from tests.support.pages import PageTestCase

PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]

SHELL = ("sh", "bash", "shell")
# Of these nothing is held.
UNCHECKED = ("docker", "ini", "none", "pycon", "text", "toml")

# Other packages need not be installed, and where they are, reading them takes longer than all the pages. A second
# definition of a name is a second way to write it; and current_task() gives None outside of a task only. What is shown
# must run on the oldest Python.
MYPY = """
[mypy]
cache_dir = .cache
check_untyped_defs = true
disable_error_code = no-redef
follow_imports = skip
ignore_missing_imports = true
python_version = 3.10
strict_optional = false
[mypy-sqstaskmaster.*]
follow_imports = normal
[mypy-numpy.*]
follow_imports_for_stubs = true
"""
MYPY_SECONDS = 110


def all_blocks():
    return [block for page in PAGES for block in blocks(page) if not block.mark.startswith("not checked")]


def fails(arguments):
    """What the command says against its arguments; None where they are right."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            _parse(arguments)
        except SystemExit as end:
            return said.getvalue() if end.code else None
    return None


class TestBlocks(unittest.TestCase):
    maxDiff = None

    def test_there_are_pages_and_blocks(self):
        self.assertGreater(len(PAGES), 10)
        self.assertGreater(len(all_blocks()), 5)

    def test_every_block_is_of_a_language_that_is_looked_at(self):
        known = {"python", "json", "yaml", *SHELL, *UNCHECKED}
        self.assertEqual([], [f"{block}: {block.language}" for block in all_blocks() if block.language not in known])

    def test_only_a_python_file_is_marked_to_be_run(self):
        self.assertEqual([], [str(block) for block in all_blocks() if block.mark == "run" and not block.name])

    def test_every_json_block_parses(self):
        for block in all_blocks():
            if block.language == "json":
                with self.subTest(str(block)):
                    json.loads(block.source)

    def test_every_yaml_block_parses(self):
        need("yaml", "docs")
        import yaml

        for block in all_blocks():
            if block.language == "yaml":
                with self.subTest(str(block)):
                    list(yaml.safe_load_all(block.source))

    @unittest.skipIf(sys.version_info >= (3, 15), "cfn-lint has no release for it yet")
    def test_every_cloudformation_template_has_the_form_that_aws_takes(self):
        need("cfnlint", "dev")
        from cfnlint.api import lint_all

        templates = [block for block in all_blocks() if "AWSTemplateFormatVersion" in block.source]
        self.assertTrue(templates)
        for block in templates:
            found = [str(match) for match in lint_all(block.source) if match.rule.id[0] in "EW"]
            self.assertEqual([], found, str(block))

    @unittest.skipUnless(shutil.which("bash"), "there is no bash")
    def test_every_shell_block_parses(self):
        for block in all_blocks():
            if block.language in SHELL:
                checked = subprocess.run(
                    ["bash", "-n"], input=block.source, capture_output=True, text=True, timeout=support.DEADLINE_SECONDS
                )
                self.assertEqual((0, ""), (checked.returncode, checked.stderr), str(block))

    def test_every_command_shown_is_one_that_the_parser_takes(self):
        wrong = []
        for block in all_blocks():
            if block.language in SHELL:
                shown = commands(block.source)
            else:  # as a list of words, in a Dockerfile or a manifest
                lists = re.findall(r'\[\s*"sqstaskmaster"(?:\s*,\s*"[^"]*")+\s*\]', block.source)
                shown = [json.loads(words)[1:] for words in lists]
            for arguments in shown:
                said = fails(arguments)
                if said:
                    wrong.append(f"{block}: {' '.join(arguments)}: {said}")
        self.assertEqual([], wrong)

    def test_every_page_that_installs_the_package_asks_for_no_older_one_of_the_same_name(self):
        bare = []
        pages = [*PAGES, *(ROOT / "examples").rglob("*.rst"), *(ROOT / "examples").rglob("Dockerfile*")]
        for page in pages:
            for asked in re.findall(r"pip install [^\n`&]*", page.read_text(encoding="utf-8")):
                for name in re.findall(r"(?<![\w./-])sqstaskmaster(?:\[[\w,]+\])?(?![\w/.\[-])[^\s']*", asked):
                    if ">=0." not in name and "==" not in name:
                        bare.append(f"{page.relative_to(ROOT)}: {asked}")
        self.assertGreater(len(pages), 50)
        self.assertEqual([], bare)

    def test_every_command_named_in_the_text_exists_and_has_the_options_named(self):
        wrong = []
        for page in PAGES:
            for said in re.findall(r"``sqstaskmaster ([a-z][^`]*)``", page.read_text(encoding="utf-8")):
                command, *rest = said.split()
                helped = io.StringIO()
                with contextlib.redirect_stdout(helped), contextlib.redirect_stderr(helped):
                    with contextlib.suppress(SystemExit):
                        _parse([command, "--help"])
                for option in [word.partition("=")[0] for word in rest if word.startswith("--")] + [""]:
                    if f"usage: sqstaskmaster {command}" not in helped.getvalue() or option not in helped.getvalue():
                        wrong.append(f"{page.relative_to(ROOT)}: sqstaskmaster {said}")
        self.assertEqual([], wrong)

    def test_every_python_block_passes_the_type_checker(self):
        with tempfile.TemporaryDirectory() as folder:
            pages = {}
            for page in PAGES:
                prefix = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
                for name, source in as_modules(page, prefix).items():
                    pages[name] = page.relative_to(ROOT)
                    (pathlib.Path(folder) / f"{name}.py").write_text(source, encoding="utf-8")
            (pathlib.Path(folder) / "mypy.ini").write_text(MYPY, encoding="utf-8")
            environ = {**os.environ, "MYPYPATH": str(ROOT) if (ROOT / "sqstaskmaster").is_dir() else ""}
            checked = subprocess.run(
                [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "--no-error-summary", "."],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=MYPY_SECONDS,
            )
        said = re.sub(r"(?m)^(\w+)\.py:", lambda found: f"{pages.get(found[1], found[1])}:", checked.stdout)
        self.assertEqual((0, ""), (checked.returncode, said + checked.stderr))


def of_page(path):
    """The test of a page whose files are to be run."""

    class TestRun(PageTestCase):
        page = path

        def test_every_file_marked_to_be_run_runs_to_its_end(self):
            for block in [block for block in blocks(path) if block.mark == "run"]:
                if "import xgboost" in block.source:
                    need("xgboost", "xgboost")
                ran = self.run_to_its_end(f"{block.name}.py")
                self.assertEqual(0, ran.returncode, f"{block.name}.py of {path}:\n{ran.stdout}{ran.stderr}")

    name = "".join(part.title() for part in re.split(r"\W", path.stem))
    TestRun.__name__ = TestRun.__qualname__ = f"TestRun{name}"
    return TestRun


for each in PAGES:
    if any(block.mark == "run" for block in blocks(each)):
        made = of_page(each)
        globals()[made.__name__] = made
        del made


if __name__ == "__main__":
    unittest.main()
