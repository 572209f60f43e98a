"""What a command shows: tables, progress, and tables that refresh.

With `rich` (the extra `cli`) in colour on a terminal; in a pipe, or without the library, as plain text that `cut` and
`grep` can read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

# A progress line in a pipe: often enough to see that it goes on, seldom enough for a log.
_PLAIN_PROGRESS_SECONDS = 5.0


class Table(NamedTuple):
    """Columns by name, rows of text. `styles` gives a row a colour by its number ("" for none).

    `numbers`: the names of the columns that stand to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Sequence[str] = ()
    numbers: Collection[str] = ()


def is_rich() -> bool:
    """Whether output goes to a terminal and `rich` is there."""
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def show(table: Table) -> None:
    """Print the table."""
    if is_rich():
        from rich.console import Console

        Console().print(_rich_table(table))
    else:
        print(plain(table), flush=True)


def plain(table: Table) -> str:
    """The table as lines of text, its columns aligned by spaces."""
    rows = [table.columns, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    sides = [str.rjust if column in table.numbers else str.ljust for column in table.columns]
    lines = ("  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def show_json(table: Table) -> None:
    """Print the rows as one line of JSON: a list of objects, whose numbers are numbers."""
    rows = [
        {column: _number(cell) if column in table.numbers else cell for column, cell in zip(table.columns, row)}
        for row in table.rows
    ]
    print(json.dumps(rows), flush=True)


def _number(cell: str) -> int | None:
    return int(cell) if cell.isdecimal() else None


def watch(ask: Callable[[], Table], every: float) -> None:
    """Show what `ask()` gives, again and again with `every` seconds in between, until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        if is_rich():
            from rich.live import Live

            with Live(_rich_table(ask()), auto_refresh=False) as live:
                while True:
                    time.sleep(every)
                    live.update(_rich_table(ask()), refresh=True)
        while True:
            table = ask()
            print(time.strftime("%Y-%m-%d %H:%M:%S"))
            show(table)
            time.sleep(every)


@contextlib.contextmanager
def progress(
    what: str, total: int | None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int | None], None]]:
    """Give a function `update(done, total)` that shows how far `what` has come, on standard error."""
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


def _rich_table(table: Table) -> Any:
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable()
    for column in table.columns:
        shown.add_column(column, overflow="fold", justify="right" if column in table.numbers else "left")
    styles = table.styles or [""] * len(table.rows)
    for row, style in zip(table.rows, styles):
        shown.add_row(*map(escape, row), style=style or None)
    return shown
