"""The picture: a pure function from events to lines of text. Knows nothing of terminals, processes or clocks.

events --rows()--> one Row for each message --picture()--> title, axis, a bar for each row, legend, verdict
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence

from sqstaskmaster._cli.demo.events import ENDS, KEPT, Event, Kind


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """One character for each thing in the picture."""

    waiting: str = "·"
    received: str = "●"
    running: str = "━"
    head: str = "╸"
    extended: str = "◆"
    held: str = "┄"
    done: str = "✓"
    failed: str = "✗"
    stopped: str = "■"
    back: str = "↺"
    rule: str = "─"
    tick: str = "┬"
    now: str = "▼"
    dot: str = "·"


UNICODE = Glyphs()
ASCII = Glyphs(".", "o", "=", "=", "#", "-", "v", "x", "!", "@", "-", "+", "V", "-")

# The sixteen colours that every terminal's theme defines, so that the picture is readable on light and dark.
_CODES = {
    "title": "1",
    "dim": "2",
    "waiting": "2",
    "running": "36",
    "extended": "1;97;46",
    "held": "36",
    "done": "32",
    "failed": "31",
    "stopped": "33",
    "back": "35",
    "now": "1;36",
}


@dataclasses.dataclass(frozen=True)
class Look:
    """How to draw: the width in columns, in colour or not, and with which glyphs."""

    width: int = 100
    colour: bool = False
    glyphs: Glyphs = UNICODE

    def paint(self, text: str, style: str) -> str:
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.colour and style and text.strip() else text


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known before anything happens. Seconds throughout.

    `limits` are the rows' hard timeouts; `note` is shown at the end.
    """

    titles: Sequence[str]
    limits: Sequence[float]
    claim: float
    extend_every: float
    length: float
    queue: str
    note: str = ""


@dataclasses.dataclass
class Row:
    """One message: what happened to it and when (seconds since the demo began), and how it ended."""

    sent: float | None = None
    received: float | None = None
    extended: list[float] = dataclasses.field(default_factory=list)
    held_until: float = 0.0
    ended: float | None = None
    end: Kind | None = None
    text: str = ""
    stack: str = ""
    back: float | None = None

    def take(self, event: Event) -> None:
        if event.kind is Kind.SENT:
            self.sent = event.at
        elif event.kind is Kind.RECEIVED:
            self.received = event.at
            self.held_until = event.at + event.claim
        elif event.kind is Kind.EXTENDED:
            # An extension granted while a stopped task is wound up counts for the claim, but gets no mark on the bar.
            self.held_until = event.at + event.claim
            if self.end is None:
                self.extended.append(event.at)
        elif event.kind is Kind.BACK:
            self.back = event.at
        elif event.kind in ENDS:
            self.ended, self.end, self.text, self.stack = event.at, event.kind, event.text, event.stack


def rows(plan: Plan, events: Iterable[Event]) -> list[Row]:
    """A Row for each title of the plan, in its order."""
    made = [Row() for _ in plan.titles]
    for event in events:
        if 0 <= event.row < len(made):
            made[event.row].take(event)
    return made


# -- the bars ----------------------------------------------------------------------------------------------------

_END_STYLES = {
    Kind.DONE: "done",
    Kind.FAILED: "failed",
    Kind.TIMED_OUT: "stopped",
    Kind.STUCK: "stopped",
    Kind.INTERRUPTED: "stopped",
    Kind.REFUSED: "failed",
}

Cell = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Seconds to columns."""

    seconds: float
    columns: int

    def at(self, seconds: float) -> int:
        return max(0, min(self.columns - 1, int(seconds / self.seconds * self.columns)))

    def step(self) -> int:
        """Whole seconds between two ticks, so that their labels stay apart."""
        for step in (1, 2, 5, 10, 20, 30):
            if step / self.seconds * self.columns >= 6:
                return step
        return 60

    def ticks(self) -> list[int]:
        return list(range(0, math.ceil(self.seconds), self.step()))


def _end_glyph(glyphs: Glyphs, end: Kind) -> str:
    return {"done": glyphs.done, "failed": glyphs.failed, "stopped": glyphs.stopped}[_END_STYLES[end]]


def bar(row: Row, axis: Axis, now: float, glyphs: Glyphs) -> list[Cell]:
    """The row's cells from the left, each a character and its style."""
    cells: list[Cell] = [(" ", "")] * axis.columns

    def fill(start: float, end: float, glyph: str, style: str) -> None:
        for column in range(axis.at(start), axis.at(end) + 1):
            cells[column] = (glyph, style)

    if row.sent is None:
        return cells
    fill(row.sent, row.received if row.received is not None else now, glyphs.waiting, "waiting")
    if row.received is None:
        return cells
    if row.end in KEPT or row.end is None:
        # How far ahead the claim reaches: each extension pushes it on.
        if row.back is not None:
            fill(row.held_until, row.back, glyphs.waiting, "waiting")
        fill(row.received, row.held_until, glyphs.held, "held" if row.end is None else "dim")
    style = _END_STYLES[row.end] if row.end else "running"
    end = now if row.ended is None else row.ended
    fill(row.received, end, glyphs.running, style)
    if row.end is None:
        cells[axis.at(end)] = (glyphs.head, style)
    cells[axis.at(row.received)] = (glyphs.received, style)
    for at in row.extended:
        cells[axis.at(at)] = (glyphs.extended, "title")
    if row.end is not None:
        cells[axis.at(end)] = (_end_glyph(glyphs, row.end), style)
    if row.end in KEPT:
        at = row.back or row.held_until
        cells[max(axis.at(at), axis.at(end) + 1)] = (glyphs.back, "back" if at <= now else "dim")
    return cells


def _joined(cells: Sequence[Cell], look: Look) -> str:
    """The cells as one string, painted in runs of one style."""
    line, start = "", 0
    for column in range(1, len(cells) + 1):
        if column == len(cells) or cells[column][1] != cells[start][1]:
            line += look.paint("".join(glyph for glyph, _ in cells[start:column]), cells[start][1])
            start = column
    return line


# -- the words ---------------------------------------------------------------------------------------------------


def verdict(row: Row, limit: float, now: float) -> tuple[str, str]:
    """What became of the row, in at most 32 characters, and its style."""
    if row.sent is None:
        return "", ""
    if row.received is None:
        return "in the queue", "dim"
    if row.end is None:
        return f"running {now - row.received:.1f} s", "running"
    ran = (row.ended or 0.0) - row.received
    style = _END_STYLES[row.end]
    if row.end is Kind.DONE:
        return f"done in {ran:.1f} s, deleted", style
    if row.end is Kind.FAILED:
        return f"{row.text.partition(':')[0] or 'failed'} raised, kept", style
    if row.end is Kind.TIMED_OUT:
        return f"stopped at its {limit:g} s limit, kept", style
    if row.end is Kind.STUCK:
        return "no progress, stopped, kept", style
    if row.end is Kind.REFUSED:
        return "refused, kept, hurt nobody", style
    return "interrupted, given back", style


def line(event: Event, plan: Plan) -> str:
    """One event as one line of plain text."""
    words = {
        Kind.SENT: "sent",
        Kind.RECEIVED: f"received, claimed for {event.claim:g} s",
        Kind.EXTENDED: f"claim extended, {event.claim:g} s from now",
        Kind.DONE: "finished, message deleted",
        Kind.FAILED: f"raised {event.text}; message kept",
        Kind.TIMED_OUT: "stopped at its hard timeout; message kept",
        Kind.STUCK: "stopped, it made no progress; message kept",
        Kind.INTERRUPTED: "interrupted; message given back",
        Kind.REFUSED: "malformed, refused; message kept, the worker goes on",
        Kind.BACK: f"visible again, receive number {event.text}; deleted, the demo is over for it",
        Kind.ASIDE: "a message that is not the demo's, set aside until the end",
        Kind.TROUBLE: event.text,
    }[event.kind]
    title = plan.titles[event.row] if event.row >= 0 else ""
    return f"{event.at:7.2f} s  {title:<{max(map(len, plan.titles))}}  {words}"


def summary(made: Sequence[Row], now: float) -> str:
    """The last line: how many messages ended in which way."""
    names = {
        Kind.DONE: "done",
        Kind.FAILED: "raised",
        Kind.TIMED_OUT: "over the limit",
        Kind.STUCK: "stuck",
        Kind.REFUSED: "refused",
        Kind.INTERRUPTED: "interrupted",
    }
    counts = {kind: sum(row.end is kind for row in made) for kind in names}
    told = ", ".join(f"{count} {names[kind]}" for kind, count in counts.items() if count)
    return f"{len(made)} messages in {now:.1f} s: {told or 'none ended'}"


# -- the whole ---------------------------------------------------------------------------------------------------

_VERDICT_COLUMNS = 31
_SHORTEST_AXIS = 29  # so that the last picture has room on a terminal of 80 by 24
_MARGIN = 1


def picture(plan: Plan, events: Sequence[Event], now: float, look: Look, finished: bool = False) -> list[str]:
    """The lines of the picture at the time `now`, none wider than the look says.

    If there is room, a row is one line: its title, its bar, its verdict. If not, title and verdict move above the bar,
    and the bar takes the whole width.
    """
    made = rows(plan, events)
    label = max(map(len, plan.titles)) + 2
    columns = look.width - 2 * _MARGIN - label - _VERDICT_COLUMNS - 2
    side_by_side = columns >= _SHORTEST_AXIS
    if not side_by_side:
        label, columns = 0, max(10, look.width - 2 * _MARGIN)
    longest = max([plan.length, now, *(row.held_until for row in made if row.end is not Kind.DONE)])
    axis = Axis(longest, columns)
    lines = [_title(plan, look, now), *_scale(axis, now, look, label, finished)]
    for title, limit, row in zip(plan.titles, plan.limits, made):
        cells = _joined(bar(row, axis, now, look.glyphs), look)
        words, style = verdict(row, limit, now)
        painted = look.paint(words, style)
        if side_by_side:
            name = look.paint(f"{title:<{label}}", "title" if row.received is not None and row.end is None else "")
            lines.append(f"{'':{_MARGIN}}{name}{cells}  {painted}")
        else:
            # A line that is too long would wrap, and everything above it would be drawn in the wrong place.
            words = words[: max(0, columns - len(title) - 1)]
            painted = look.paint(words, style)
            gap = " " * max(1, columns - len(title) - len(words))
            lines += [f"{'':{_MARGIN}}{look.paint(title, 'title')}{gap}{painted}", f"{'':{_MARGIN}}{cells}"]
    lines += ["", *_legend(look)]
    for title, row in zip(plan.titles, made):
        lines += _stack(title, row, look)
    if finished:
        lines += ["", *_paragraph(summary(made, now), look, "title"), *_paragraph(plan.note, look, "dim")]
    return [text.rstrip() for text in lines]


def _title(plan: Plan, look: Look, now: float) -> str:
    name, clock = "sqstaskmaster demo", f"{now:5.1f} s"
    facts = [plan.queue, f"claim {plan.claim:g} s", f"extended every {plan.extend_every:g} s"]
    about = f" {look.glyphs.dot} ".join(facts)
    room = look.width - 2 * _MARGIN - len(name) - len(clock) - 4
    if len(about) > room:
        about = ""
    gap = " " * max(1, look.width - 2 * _MARGIN - len(name) - len(clock) - 3 - len(about))
    return f" {look.paint(name, 'title')}   {look.paint(about, 'dim')}{gap}{look.paint(clock, 'now')}"


def _scale(axis: Axis, now: float, look: Look, label: int, finished: bool) -> list[str]:
    numbers = [" "] * axis.columns
    rule: list[Cell] = [(look.glyphs.rule, "dim")] * axis.columns
    for tick in axis.ticks():
        column = axis.at(tick)
        rule[column] = (look.glyphs.tick, "dim")
        text = str(tick) if tick else "0 s"
        if column + len(text) <= axis.columns:
            numbers[column : column + len(text)] = text
    if not finished:
        rule[axis.at(now)] = (look.glyphs.now, "now")
    indent = " " * (_MARGIN + label)
    return [
        indent + look.paint("".join(numbers).rstrip(), "dim"),
        indent + _joined(rule, look),
    ]


def _legend(look: Look) -> list[str]:
    glyphs = look.glyphs
    entries = [
        (glyphs.waiting, "waiting", "in the queue"),
        (glyphs.received, "running", "received"),
        (glyphs.extended, "title", "claim extended"),
        (glyphs.held, "held", "claim still held"),
        (glyphs.done, "done", "finished, deleted"),
        (glyphs.failed, "failed", "raised or refused, kept"),
        (glyphs.stopped, "stopped", "stopped, kept"),
        (glyphs.back, "back", "visible again"),
    ]
    plain = [f"{glyph} {words}" for glyph, _, words in entries]
    lines = _wrapped(plain, look.width, "   ")
    if look.colour:
        for glyph, style, words in entries:
            painted = f"{look.paint(glyph, style)} {look.paint(words, 'dim')}"
            lines = [text.replace(f"{glyph} {words}", painted) for text in lines]
    return lines


def _wrapped(parts: Iterable[str], width: int, gap: str) -> list[str]:
    """The parts side by side, broken into lines of at most `width`."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(gap) + len(part) <= width - _MARGIN:
            lines[-1] += gap + part
        else:
            lines.append(" " * _MARGIN + part)
    return lines


def _paragraph(text: str, look: Look, style: str) -> list[str]:
    return [look.paint(line, style) for line in _wrapped(text.split(), look.width, " ")]


def _stack(title: str, row: Row, look: Look) -> list[str]:
    """Where a task was stopped, innermost call last; empty if its handler did not learn that."""
    shown, ours = [], False
    for text in row.stack.splitlines():
        if text.strip().startswith("File "):
            ours = _OURS in text and _DEMO not in text
            text = _short(text)
        if not ours:
            shown.append(text)
    frames = [text for text in shown if text.startswith("  ")][-6:]  # three calls with their source lines
    if not frames:
        return []
    lines = [f" {title} was stopped in", *(f" {frame}" for frame in frames)]
    return ["", *(look.paint(text[: look.width], "dim" if number else "stopped") for number, text in enumerate(lines))]


# Of this package's own frames, only the demo's tasks are worth a line.
_OURS, _DEMO = f"{os.sep}sqstaskmaster{os.sep}", f"{os.sep}demo{os.sep}"


def _short(frame: str) -> str:
    """`File "/a/long/path/module.py", line 3 in f` without its folders."""
    before, quote, rest = frame.partition('"')
    path, end, after = rest.partition('"')
    return f"{before}{quote}{os.path.basename(path)}{end}{after}"
