"""What the workers of this machine run, as a table."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from sqstaskmaster._claim.report import printable
from sqstaskmaster._cli import tables
from sqstaskmaster._cli.logs import OUR_FRAME
from sqstaskmaster._service import status
from sqstaskmaster._service.exit_codes import Exit

_COLUMNS = ("worker", "slot", "task", "message", "seconds", "limit", "memory", "CPU", "claim", "progress")
_NUMBERS = ("worker", "slot", "seconds", "limit", "memory", "CPU", "claim")

_SHOWN_CHARACTERS = 40


def ps(arguments: argparse.Namespace) -> Exit:
    """Show what runs."""
    if arguments.json:
        with contextlib.suppress(KeyboardInterrupt):
            _show_json(arguments.stacks)
            while arguments.watch is not None:
                time.sleep(arguments.watch)
                _show_json(False)
    elif arguments.watch is not None:
        tables.watch(lambda: _table(status.ask()), arguments.watch)
    else:
        answers = status.ask(arguments.stacks)
        tables.show(_table(answers))
        if arguments.stacks:
            for answer in answers:
                for task in (answer.said or {}).get("tasks", ()):
                    _show_stack(task)
    return Exit.OK


def _show_json(stacks: bool) -> None:
    workers = [
        {"worker": answer.pid, "uid": answer.uid, "answers": answer.said is not None, **(answer.said or {})}
        for answer in status.ask(stacks)
    ]
    print(json.dumps(workers), flush=True)


def _table(answers: list[status.Answer]) -> tables.Table:
    rows, styles = [], []
    for answer in answers:
        tasks = [] if answer.said is None else answer.said["tasks"]
        for task in tasks:
            rows.append([str(answer.pid), *_cells(task)])
            styles.append("yellow" if task["stopping"] else "")
        if not tasks:
            said = "(does not answer)" if answer.said is None else "(idle)"
            rows.append([str(answer.pid), "", said, *[""] * (len(_COLUMNS) - 3)])
            styles.append("red" if answer.said is None else "")
    return tables.Table(_COLUMNS, rows, styles, _NUMBERS)


def _cells(task: Mapping[str, Any]) -> list[str]:
    progress = printable(", ".join(f"{name}={value}" for name, value in task["progress"].items()))
    if len(progress) > _SHOWN_CHARACTERS:
        progress = f"{progress[: _SHOWN_CHARACTERS - 3]}..."
    return [
        str(task["slot"]),
        printable(task["task"]),
        task["message_id"] or "?",
        f"{task['seconds']:.1f}",
        "?" if task["limit"] is None else f"{task['limit']:g}",
        "?" if task["memory"] is None else f"{task['memory'] / 1024**2:.1f} MiB",
        "?" if task["cpu_seconds"] is None else f"{task['cpu_seconds']:.1f}",
        "?" if task["claim_age"] is None else f"{task['claim_age']:.1f}",
        progress,
    ]


def _show_stack(task: Mapping[str, Any]) -> None:
    print(f"\n{printable(task['task'])}, message {task['message_id'] or '?'}, pid {task['pid']}:")
    stack = OUR_FRAME.sub("", f"{task['stack']}\n").strip("\n") or "It does not tell where it is"
    print("\n".join(f"  {line}" for line in stack.splitlines()))
