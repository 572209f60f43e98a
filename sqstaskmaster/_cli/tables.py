"""What a command shows: tables, progress, and tables that refresh.

On a terminal with `rich` (the extra `cli`) in colour. In a pipe every row is one complete line, for `cut` and `grep`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

# The pause between progress lines in a pipe: short enough to show that it goes on, long enough for a log.
_PLAIN_PROGRESS_SECONDS = 5.0


# Between two columns, and the indent of what is shown below a row.
_GAP = "  "

# No column is cut to less than this.
_LEAST_WIDTH = 8

_STYLES = {"warning": "yellow", "error": "red"}


class Table(NamedTuple):
    """Columns by name, rows of text. `styles`: the style of each row, by its number ("" for none).

    `numbers`: the names of the columns that are right-aligned. `long`: of those that are cut if the terminal is too
    narrow. `below`: of those that then move below the row, before any is cut; ids are never cut.
    `notes`: sentences shown below all rows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Sequence[str] = ()
    numbers: Collection[str] = ()
    long: Collection[str] = ()
    below: Collection[str] = ()
    notes: Sequence[str] = ()


def is_rich() -> bool:
    """Whether output goes to a terminal and `rich` is installed."""
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def width() -> int | None:
    """How many characters a line may have; None for any number."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def show(table: Table) -> None:
    """Print the table."""
    if is_rich():
        from rich.console import Console

        Console().print(_coloured(table), soft_wrap=True)
    else:
        print(plain(table, width()), flush=True)


def plain(table: Table, width: int | None = None) -> str:
    """The table as lines of text, its columns aligned by spaces.

    :param width: how many characters a line may have.
    """
    return "\n".join(line for line, _ in _lines(table, width))


def _lines(table: Table, width: int | None) -> list[tuple[str, str]]:
    """Each line with its style."""
    columns = list(range(len(table.columns)))
    widths = [max(len(row[column]) for row in [table.columns, *table.rows]) for column in columns]
    styles = [*table.styles, *[""] * len(table.rows)]
    beside = columns
    if width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        beside = [column for column in columns if table.columns[column] not in table.below]
        _cut_to(table, width, beside, widths)

    def aligned(row: Sequence[str]) -> str:
        cells = []
        for column in beside:
            side = str.rjust if table.columns[column] in table.numbers else str.ljust
            cells.append(side(shortened(row[column], widths[column]), widths[column]))
        return _GAP.join(cells).rstrip()

    lines = [(aligned(table.columns), "bold")]
    for row, style in zip(table.rows, styles):
        lines.append((aligned(row), style))
        for column in columns:
            if column not in beside and row[column]:
                line = f"{_GAP}{_GAP}{table.columns[column]} {row[column]}"
                is_long = table.columns[column] in table.long
                lines.append((shortened(line, width) if is_long and width is not None else line, style))
    return lines + [(line, "yellow") for note in table.notes for line in _wrapped(note)]


def _cut_to(table: Table, width: int, columns: Sequence[int], widths: list[int]) -> None:
    """Narrow the widest of the long columns, again and again, until all fit or none can shrink further."""
    long = [column for column in columns if table.columns[column] in table.long]
    excess = sum(widths[column] for column in columns) + len(_GAP) * (len(columns) - 1) - width
    while excess > 0 and long:
        widest = max(long, key=lambda column: widths[column])
        if widths[widest] <= _LEAST_WIDTH:
            return
        widths[widest] -= 1
        excess -= 1


def shortened(text: str, width: int) -> str:
    """The text, cut with an ellipsis if it is longer than `width`."""
    return text if len(text) <= width else f"{text[: max(0, width - 3)]}..."


def show_findings(rows: Iterable[Sequence[str]]) -> None:
    """Print findings as a list. Each row: what was checked, how bad it is, what was found, the remedy or ""."""
    lines: list[tuple[str, str]] = []
    for name, level, found, remedy in rows:
        lines += [(line, _STYLES.get(level, "")) for line in _wrapped(f"{level:<8} {name}: {found}")]
        lines += [(line, "") for line in _wrapped(f"{'':<8} {remedy}")] if remedy else []
    if is_rich():
        from rich.console import Console

        Console().print(_joined(lines), soft_wrap=True)
    else:
        print("\n".join(line for line, _ in lines), flush=True)


def _wrapped(text: str) -> list[str]:
    """The text, wrapped to the terminal's width if there is one."""
    most = width()
    if most is None:
        return [text]
    fill = textwrap.TextWrapper(most, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)
    return fill.wrap(text)


def show_json(table: Table) -> None:
    """Print the rows as one line of JSON: a list of objects, with numbers as numbers."""
    rows = [
        {column: _number(cell) if column in table.numbers else cell for column, cell in zip(table.columns, row)}
        for row in table.rows
    ]
    print(json.dumps(rows), flush=True)


def _number(cell: str) -> int | None:
    return int(cell) if cell.isdecimal() else None


def watch(ask: Callable[[], Table], every: float) -> None:
    """Show what `ask()` returns, again and again with `every` seconds in between, until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        if is_rich():
            from rich.live import Live

            with Live(_coloured(ask(), _now()), auto_refresh=False, screen=True) as live:
                while True:
                    time.sleep(every)
                    live.update(_coloured(ask(), _now()), refresh=True)
        while True:
            table = ask()
            print(_now())
            show(table)
            time.sleep(every)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


@contextlib.contextmanager
def progress(
    what: str, total: int | None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function `update(done, total)` that shows how far `what` has come, on standard error."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done, known: bar.update(task, completed=done, total=known)
        return
    yield _PlainProgress(what, clock).update


class _PlainProgress:
    def __init__(self, what: str, clock: Callable[[], float]) -> None:
        self._what = what
        self._clock = clock
        self._next = clock() + _PLAIN_PROGRESS_SECONDS

    def update(self, done: int, total: int | None) -> None:
        if self._clock() >= self._next:
            self._next = self._clock() + _PLAIN_PROGRESS_SECONDS
            of_total = f" of {total:,}" if total is not None else ""
            print(f"{self._what}: {done:,}{of_total}", file=sys.stderr, flush=True)


def _coloured(table: Table, *above: str) -> Any:
    return _joined([*((line, "") for line in above), *_lines(table, width())])


def _joined(lines: Iterable[tuple[str, str]]) -> Any:
    from rich.text import Text

    return Text("\n").join(Text(line, style) for line, style in lines)
