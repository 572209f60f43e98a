"""Shows what the workers of this machine run, as a table."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from sqstaskmaster._claim.report import printable
from sqstaskmaster._cli import tables
from sqstaskmaster._claim.words import OUR_FRAME
from sqstaskmaster._service import places, status
from sqstaskmaster._service.exit_codes import Exit

_COLUMNS = (
    "worker",
    "slot",
    "task",
    "message_id",
    "seconds",
    "limit",
    "memory",
    "CPU",
    "claim",
    "progress",
    "queues",
)
_NUMBERS = ("worker", "slot", "seconds", "limit", "memory", "CPU", "claim")
_LONG = ("task", "progress", "queues")
_BELOW = ("message_id", "progress", "queues")

_SHOWN_CHARACTERS = 60


def ps(arguments: argparse.Namespace) -> Exit:
    """Show what runs."""
    if arguments.watch and not arguments.json:
        tables.watch(_picture, arguments.every)
        return Exit.OK
    answers = status.ask(arguments.stacks)
    if arguments.json:
        _show_json(answers)
        with contextlib.suppress(KeyboardInterrupt):
            while arguments.watch:
                time.sleep(arguments.every)
                _show_json(status.ask())
    else:
        tables.show(_table(answers))
        if arguments.stacks:
            for answer in answers:
                for task in (answer.said or {}).get("tasks", ()):
                    _show_stack(task)
    found = places.look()
    for note in _notes(answers, found):
        print(f"sqstaskmaster: {note}", file=sys.stderr, flush=True)
    return Exit.FAILED if found.troubles and not answers else Exit.OK


def _picture() -> tables.Table:
    answers = status.ask()
    return _table(answers)._replace(notes=_notes(answers, places.look()))


def _notes(answers: list[status.Answer], found: places.Found) -> list[str]:
    """Sentences for people that say what is not shown, and why."""
    notes = [] if answers else [f"Found no worker: {places.where()}. The loop of a script is not shown"]
    notes += found.troubles
    if found.others and not answers:
        notes.append(f"Workers of other users run here ({', '.join(map(str, found.others[:10]))}): look as root")
    return list(map(printable, notes))


def _show_json(answers: list[status.Answer]) -> None:
    workers = []
    for answer in answers:
        who = {"worker": answer.pid, "uid": answer.uid, "answers": answer.said is not None}
        workers.append({**who, **(answer.said or {}), **who})  # its answer cannot override who it is
    print(json.dumps(workers), flush=True)


def _table(answers: list[status.Answer]) -> tables.Table:
    rows, styles = [], []
    for answer in answers:
        said = answer.said or {}
        queues = said.get("queues")
        shown = _text(", ".join(str(url).rpartition("/")[2] for url in queues) if isinstance(queues, list) else "")
        tasks, processes = said.get("tasks", ()), _dictionaries(said.get("processes"))
        ran = {str(process.get("slot")): _ran(process) for process in processes}
        for task in tasks:
            *cells, progress = _cells(task)
            progress = "; ".join(filter(None, (progress, ran.get(str(task.get("slot"))))))
            rows.append([str(answer.pid), *cells, progress, shown])
            styles.append("yellow" if task.get("stopping") else "")
        busy = {str(task.get("slot")) for task in tasks}
        for process in processes:
            if process.get("starting") is not None:
                seconds, timeout = _number(process["starting"], "{:.0f}"), _number(process.get("timeout"), "{:g}")
                what = f"(starting, {seconds} s of {timeout})"
            elif process.get("ready") and str(process.get("slot")) not in busy:
                what = "(ready)"
            else:
                continue
            slot = _number(process.get("slot"), "{:.0f}")
            rows.append([str(answer.pid), slot, what, *[""] * (len(_COLUMNS) - 5), _ran(process), shown])
            styles.append("")
        if not tasks and not processes:
            what = "(does not answer)" if answer.said is None else "(idle)"
            rows.append([str(answer.pid), "", what, *[""] * (len(_COLUMNS) - 4), shown])
            styles.append("red" if answer.said is None else "")
    return tables.Table(_COLUMNS, rows, styles, _NUMBERS, _LONG, _BELOW)


def _dictionaries(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _ran(process: Mapping[str, Any]) -> str:
    """How many tasks a process that stays has run, and why it is not the slot's first."""
    replaced = process.get("replaced")
    return f"{_number(process.get('tasks'), '{:.0f}')} tasks run" + (
        f"; new, since {_text(replaced)}" if replaced else ""
    )


def _cells(task: Mapping[str, Any]) -> list[str]:
    """A task's cells. The worker may be another user's: its text is made harmless; a value of a wrong type is "?"."""
    progress = task.get("progress")
    shown = ", ".join(f"{name}={value}" for name, value in progress.items()) if isinstance(progress, dict) else "?"
    return [
        _number(task.get("slot"), "{:.0f}"),
        _text(task.get("task")),
        _text(task.get("message_id")),
        _number(task.get("seconds"), "{:.1f}"),
        _number(task.get("limit"), "{:g}"),
        _number(task.get("memory"), "{:.1f} MiB", 1 << 20),
        _number(task.get("cpu_seconds"), "{:.1f}"),
        _number(task.get("claim_age"), "{:.1f}"),
        _text(shown),
    ]


def _number(found: Any, form: str, unit: int = 1) -> str:
    is_number = isinstance(found, float) or isinstance(found, int) and abs(found) < 1 << 60
    return form.format(found / unit if unit > 1 else found) if is_number else "?"


def _text(found: Any) -> str:
    return tables.shortened(printable(found), _SHOWN_CHARACTERS) if isinstance(found, str) else "?"


def _show_stack(task: Mapping[str, Any]) -> None:
    print(
        f"\n{_text(task.get('task'))}, message {_text(task.get('message_id'))}, pid {_number(task.get('pid'), '{}')}:"
    )
    stack = OUR_FRAME.sub("", f"{task.get('stack') or ''}\n").strip("\n") or "Its stack is not known"
    print("\n".join(f"  {printable(line.expandtabs())}" for line in stack.split("\n")))
