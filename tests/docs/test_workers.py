"""The workers that the pages show can be made: what a type checker cannot see of them, they check themselves."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from tests import support
from tests.support.blocks import QUEUE_URL, ROOT, python_files

PAGES = sorted((ROOT / "docs").rglob("*.rst"))

# Recipes are shown from here, and are imported by the file beside them.
RECIPES = ROOT / "examples" / "hooks"


def main():
    """Import each file that makes a worker, page by page. Prints what went wrong, and how many were made."""
    wrong, made = [], 0
    for page in PAGES:
        files = {name: source for name, source in python_files(page) if source}
        with tempfile.TemporaryDirectory() as folder:
            for name, source in files.items():
                pathlib.Path(folder, f"{name}.py").write_text(source, encoding="utf-8")
            before = set(sys.modules)
            sys.path.insert(0, folder)
            for name, source in files.items():
                if "Worker(" not in source or name.startswith("test_"):
                    continue
                try:
                    # What is not installed here, or is of the reader's own project, is not this test's business.
                    with contextlib.suppress(ModuleNotFoundError):
                        importlib.import_module(name)
                        made += 1
                except Exception as error:
                    wrong.append(f"{page.relative_to(ROOT)}: {name}.py: {error!r}")
            sys.path.remove(folder)
            for name in set(sys.modules) - before:
                if name in files:
                    del sys.modules[name]
        importlib.invalidate_caches()
    print(json.dumps([made, wrong]))


class TestWorkers(unittest.TestCase):
    def test_every_worker_shown_can_be_made(self):
        made = subprocess.run(
            [sys.executable, "-B", "-m", "tests.docs.test_workers", "main"],
            cwd=ROOT,
            env={
                **support.environment(),
                "PYTHONPATH": os.pathsep.join([str(RECIPES), *filter(None, sys.path)]),
                "QUEUE_URL": QUEUE_URL,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=support.DEADLINE_SECONDS,
        )
        self.assertEqual(0, made.returncode, made.stderr)
        number, wrong = json.loads(made.stdout.splitlines()[-1])
        self.assertEqual([], wrong)
        self.assertGreater(number, 15)


if __name__ == "__main__":
    if sys.argv[1:] == ["main"]:
        main()
    else:
        unittest.main()
