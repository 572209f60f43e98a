"""The pictures of the pages are what their programs draw, from numbers that say where they come from."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
from xml.etree import ElementTree

from sqstaskmaster._cli.demo import picture
from sqstaskmaster._cli.demo.scenarios import SCENARIOS
from tests import support
from tests.support.blocks import ROOT
from tests.support.extras import need

PLOTS = ROOT / "docs" / "plots"
DEMO = ROOT / "docs" / "pictures" / "demo.svg"


def words(svg):
    """The text of a picture, piece by piece."""
    pieces = (element.text for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text"))
    return [piece.replace("\xa0", " ") for piece in pieces if piece]


class TestPictures(unittest.TestCase):
    maxDiff = None

    def test_the_plots_are_what_their_program_draws(self):
        need("matplotlib", "docs")
        with tempfile.TemporaryDirectory() as folder:
            drawn = subprocess.run(
                [sys.executable, str(PLOTS / "draw.py"), folder],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=support.DEADLINE_SECONDS,
            )
            self.assertEqual(0, drawn.returncode, drawn.stderr)
            now = {path.name: sorted(words(path)) for path in pathlib.Path(folder).glob("*.svg")}
        kept = {path.name: sorted(words(path)) for path in PLOTS.glob("*.svg")}
        self.assertEqual(sorted(kept), sorted(now))
        for name, said in kept.items():
            self.assertEqual(said, now[name], f"{name}: run docs/plots/draw.py")

    def test_every_number_drawn_says_how_it_was_measured(self):
        measured = json.loads((PLOTS / "measured.json").read_text(encoding="utf-8"))
        self.assertIn("cores", measured.pop("machine"))
        measured.pop("cost")  # is not measured, but reckoned
        self.assertEqual(4, len(measured))
        for name, each in measured.items():
            with self.subTest(name):
                self.assertRegex(each["date"], r"^\d{4}-\d\d-\d\d$")
                for program in re.findall(r"python -m (benchmarks\.\w+)", each["command"]):
                    self.assertTrue((ROOT / (program.replace(".", "/") + ".py")).is_file(), program)
                self.assertIn("python -m benchmarks.", each["command"])

    def test_the_picture_of_the_demo_has_its_tasks_and_its_legend(self):
        shown = "\n".join(words(DEMO))
        for scenario in SCENARIOS:
            self.assertIn(scenario.title, shown)
        for words_of_legend in ("in the queue", "claim extended", "visible again"):
            self.assertIn(words_of_legend, shown)
        for glyph in (picture.UNICODE.extended, picture.UNICODE.stopped, picture.UNICODE.done):
            self.assertIn(glyph, shown)


if __name__ == "__main__":
    unittest.main()
