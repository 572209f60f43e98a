"""The Python files of a page, put side by side and run as processes against a real SQS server."""

import os
import subprocess
import sys
import tempfile

from tests import support
from tests.support.blocks import QUEUE_URL, python_files


class PageTestCase(support.ServerTestCase):
    """`page` is the page. The files are in `folder`, with a queue of the test's own in place of the one they name."""

    page = None

    def setUp(self):
        super().setUp()
        self.url = self.create_queue()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        for name, source in python_files(self.page):
            self.write(f"{name}.py", source)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, source):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(source.replace(QUEUE_URL, self.url))

    def change(self, name, old, new):
        """Make a file smaller than it is for readers."""
        with open(self.path(name), encoding="utf-8") as file:
            source = file.read()
        self.assertIn(old, source)
        self.write(name, source.replace(old, new))

    def environ(self):
        path = os.pathsep.join([self.folder, *sys.path])
        return {**support.environment(), "PYTHONPATH": path, "QUEUE_URL": self.url}

    def script(self, name):
        """A file that goes on running."""
        with open(self.path(name), encoding="utf-8") as file:
            return support.Script(self, file.read(), **self.environ())

    def run_to_its_end(self, *arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=support.DEADLINE_SECONDS,
        )
