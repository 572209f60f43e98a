"""The words of a failure: one sentence made of its facts, and the user's own part of its traceback."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping
from typing import Any

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# A frame of this package in a traceback, or in a stack by faulthandler, with its source lines.
OUR_FRAME = re.compile(rf'^([ |]*)  File "{re.escape(_OURS)}[^\n]*\n(?:\1    [^\n]*\n)*', re.MULTILINE)
_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
# Frames of an exception in a group have a line drawn beside them.
FRAME = re.compile(r'^[ |]*  File "', re.MULTILINE)
_HEADER = "Traceback (most recent call last):\n"
# Precedes the traceback of a task's process, which is the user's.
_IN_TASK = "sqstaskmaster.TaskTraceback: in the task's process:\n"


def of_failure(facts: Mapping[str, Any], exception: Any, comes_back: bool = True) -> str:
    """One sentence.

    :param facts: those of `Report.facts`.
    :param comes_back: whether the message of a failed task comes back: not if there is no queue.
    """
    task, outcome, message_id = (_printable(facts[name]) for name in ("task", "outcome", "message_id"))
    if facts["outcome"] == "timed out":
        why = f"stopped at its limit, gone after {facts['elapsed']:.1f} s"
    else:
        why = " ".join(f"{type(exception).__name__}: {exception}".split())
    if not comes_back or facts["outcome"] == "dead-lettered":
        return f"Task {task} {outcome}: {why}"
    back = "when its claim ends" if facts["comes_back_in"] is None else f"in {facts['comes_back_in']:.0f} s"
    message = "its message" if facts["message_id"] is None else f"message {message_id}"
    received = "" if facts["receive_count"] is None else f" (receive {facts['receive_count']})"
    return f"Task {task} {outcome}: {why}; {message}{received} comes back {back}"


def users_traceback(exception: BaseException) -> str:
    """The traceback of an exception, preceded by its causes, without the frames of this package."""
    return cut("".join(traceback.format_exception(exception)))


def cut(text: str) -> str:
    """A traceback without the frames of this package, and without what is meaningless once they are gone."""
    kept: list[str] = []
    for part in f"{text}\n".split(_CAUSE):
        part = OUR_FRAME.sub("", part).replace(_IN_TASK, "")
        if not FRAME.search(part):
            part = part.replace(_HEADER, "")
            if kept and kept[-1].rstrip().endswith(part.strip()):
                continue  # an exception of a task's process, raised again here
        kept.append(part)
    return "\n".join(part.strip("\n") for part in kept)


def _printable(found: Any) -> str:
    text = str(found)
    return text if text.isprintable() else repr(text)[1:-1]
