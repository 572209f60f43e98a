"""Draws the demo as an SVG, from a real run of it.

    python docs/pictures/demo.py [FILE]

Runs the demo's tasks, some 15 seconds, and writes the picture that a terminal shows at the end, beside this file or to
the file given. Needs rich, in the extra `cli`.
"""

from __future__ import annotations

import io
import pathlib
import sys

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from sqstaskmaster._cli.demo import picture, screen

COLUMNS = 100
TITLE = "python -m sqstaskmaster demo"

DARK = TerminalTheme(
    (22, 27, 34),
    (201, 209, 217),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207)]
    + [(177, 186, 196)],
    [(110, 118, 129), (255, 161, 152), (86, 211, 100), (227, 179, 65), (121, 192, 255), (210, 168, 255)]
    + [(86, 212, 221), (255, 255, 255)],
)

# rich's own has the address of a font on somebody's server; a reader's browser need not ask for it.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>The demo: one task after the other on a time axis, each with its claim and its end</title>
<style>
.{unique_id}-matrix {{
    font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace;
    font-size: {char_height}px;
    line-height: {line_height}px;
}}
.{unique_id}-title {{ font-size: 18px; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
  <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Recorder:
    """In the place of a terminal: keeps the last frame."""

    def __init__(self, plan):
        self.lines = []
        self._plan = plan

    def begin(self):
        pass

    def tell(self, event):
        pass

    def frame(self, events, now, finished=False):
        if finished:
            self.lines = picture.picture(self._plan, events, now, picture.Look(COLUMNS, colour=True), finished)

    def end(self):
        pass


def main(path=pathlib.Path(__file__).with_suffix(".svg")):
    recorders = []
    screen._display = lambda stream, plan: recorders.append(Recorder(plan)) or recorders[-1]
    code = screen.show(None)
    if code:
        return code
    console = Console(width=COLUMNS + 1, record=True, file=io.StringIO(), force_terminal=True, color_system="standard")
    for line in recorders[0].lines:
        console.print(Text.from_ansi(line), no_wrap=True, overflow="crop")
    console.save_svg(str(path), title=TITLE, theme=DARK, code_format=FORMAT, unique_id="demo")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
