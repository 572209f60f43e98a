"""The site builds without a warning, and what its pages show as a session is true."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import unittest
import zlib

import sqstaskmaster
from tests.support.extras import need

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BUILD_SECONDS = 120


def setUpModule():
    need("sphinx", "docs")
    need("furo", "docs")


def documented(html):
    """The last parts of the names that have a place in the built pages."""
    names = zlib.decompress((html / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    return {line.partition(" ")[0].rpartition(".")[2] for line in names if " py:" in line}


class TestSite(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.out = pathlib.Path(folder.name)

    def build(self, builder):
        built = subprocess.run(
            # One set of parsed pages for all builders: the second does not read them again.
            [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-T", "-q", "-b", builder]
            + ["-d", str(self.out / "doctrees"), str(DOCS), str(self.out / builder)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
        )
        self.assertEqual(0, built.returncode, built.stdout + built.stderr)
        return self.out / builder

    def test_it_builds_without_a_warning_and_every_reference_finds_its_target(self):
        html = self.build("html")
        self.assertEqual([], sorted({*sqstaskmaster.__all__} - documented(html)), "docs/reference/ lacks these")

    def test_every_session_shown_gives_what_it_shows(self):
        self.build("doctest")


if __name__ == "__main__":
    unittest.main()
