"""Type checkers tell users what workers would: what is right passes, what is wrong is refused where it stands."""

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
from unittest import mock

import sqstaskmaster

try:
    import mypy.api
except ImportError:  # a tool of development
    mypy = None

HERE = pathlib.Path(__file__).parent
ACCEPTED, REFUSED = HERE / "accepted.py", HERE / "refused.py"
INSTALLED_IN = pathlib.Path(sqstaskmaster.__file__).resolve().parents[1]

PYRIGHT = shutil.which("pyright", path=os.path.dirname(sys.executable))


def expected(checker):
    """{(file name, line, code)} as the marks say: the first word is mypy's, the second pyright's."""
    marks = set()
    for path in (ACCEPTED, REFUSED):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if found := re.search(r"# E: (\S+) (\S+)$", line):
                marks.add((path.name, number, found[("mypy", "pyright").index(checker) + 1]))
    return marks


class TestTyping(unittest.TestCase):
    def assert_as_marked(self, checker, found, output):
        self.assertGreater(len(expected(checker)), 25, "the marks are read")
        self.assertEqual(expected(checker) - found, set(), f"marked, and not told by {checker}:\n{output}")
        self.assertEqual(found - expected(checker), set(), f"told by {checker}, and not marked:\n{output}")

    @unittest.skipUnless(mypy, "mypy is not installed")
    def test_mypy_takes_what_is_right_and_tells_what_is_wrong(self):
        # What is installed it finds by itself; a checkout, and an editable installation, only where it is told.
        path = "" if INSTALLED_IN.name == "site-packages" else str(INSTALLED_IN)
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, MYPYPATH=path):
            options = ["--strict", "--config-file=", f"--cache-dir={folder}", "--follow-imports=silent", "--no-pretty"]
            # As users have it, whose checkers do not look into what they import.
            options += ["--show-error-codes", "--no-error-summary", "--hide-error-context", "--ignore-missing-imports"]
            with contextlib.redirect_stderr(io.StringIO()):
                output, trouble, _ = mypy.api.run([*options, str(ACCEPTED), str(REFUSED)])
        self.assertEqual(trouble, "")
        told = re.findall(r"(?m)^(?:.*[/\\])?(\w+\.py):(\d+): error: .*\[([a-z-]+)\]$", output)
        self.assert_as_marked("mypy", {(name, int(line), code) for name, line, code in told}, output)

    @unittest.skipUnless(PYRIGHT and shutil.which("node"), "pyright, or its node, is not installed")
    def test_pyright_takes_what_is_right_and_tells_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as folder:
            for path in (ACCEPTED, REFUSED):
                shutil.copy(path, folder)
            config = pathlib.Path(folder, "pyrightconfig.json")
            config.write_text(json.dumps({"extraPaths": [str(INSTALLED_IN)]}))
            command = [PYRIGHT, "--outputjson", "--project", folder, "--pythonpath", sys.executable]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        told = [each for each in json.loads(done.stdout)["generalDiagnostics"] if each["severity"] == "error"]
        found = {
            (pathlib.Path(each["file"]).name, each["range"]["start"]["line"] + 1, each.get("rule", "")) for each in told
        }
        self.assert_as_marked("pyright", found, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
