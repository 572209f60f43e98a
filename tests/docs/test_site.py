"""The site builds without a warning, and what its pages show as a session is true."""

from __future__ import annotations

import re
import unittest
import zlib

import sqstaskmaster
from tests.docs.site import build
from tests.support.extras import need


def setUpModule():
    need("sphinx", "docs")
    need("furo", "docs")


def documented(html):
    """The last parts of the names that have a place in the built pages."""
    names = zlib.decompress((html / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    return {line.partition(" ")[0].rpartition(".")[2] for line in names if " py:" in line}


class TestSite(unittest.TestCase):
    def test_it_builds_without_a_warning_and_every_reference_finds_its_target(self):
        html = build("html")
        self.assertEqual([], sorted({*sqstaskmaster.__all__} - documented(html)), "docs/reference/ lacks these")

    def test_every_session_shown_gives_what_it_shows(self):
        said = (build("doctest") / "output.txt").read_text(encoding="utf-8")
        self.assertGreater(int(re.search(r"(\d+) tests?\n", said)[1]), 5, said)


if __name__ == "__main__":
    unittest.main()
