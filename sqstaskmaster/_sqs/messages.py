"""What travels in a message body: `{"task": name, "kwargs": {...}}` as JSON. Pure functions, no network.

submit(task, **kwargs) -> encode -> body ~~~ SQS ~~~ body -> decode -> (task, kwargs)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqstaskmaster._sqs.values import Writer
from sqstaskmaster.errors import InvalidTask, MalformedMessage

LENIENT = Writer()
_decode_text = json.JSONDecoder().decode  # without the checks that json.loads makes first


def encode(task: str, kwargs: Mapping[str, Any], writer: Writer = LENIENT) -> str:
    """The body for a task, ASCII only. The writer decides about values that JSON cannot hold: see Writer.

    Raises InvalidTask (a ValueError) if the task is not a non-empty string, if a strict writer refuses a value, or if
    no JSON can be made at all: a cycle, a dictionary key that is no string or number, a `__str__` that fails.
    """
    if not isinstance(task, str) or not task:
        raise InvalidTask(f"A task's name must be a non-empty string, not {task!r}")
    try:
        return writer.write(task, kwargs)
    except InvalidTask:
        raise
    except Exception as error:  # a value's own __str__ may raise anything
        raise InvalidTask(f"The arguments of task {task!r} cannot be written as JSON: {error}") from error


def decode(body: Any) -> tuple[str, dict[str, Any]]:
    """`(task, kwargs)` from a body that `encode` wrote.

    Raises MalformedMessage, and nothing else, for every other body, whatever is wrong with it.
    """
    try:
        content = _decode_text(body) if isinstance(body, str) else json.loads(body)
    # ValueError: not JSON, bytes that are not UTF-8, an integer of more digits than Python converts.
    # TypeError: a body that is not text. RecursionError: a few thousand opening brackets.
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"The message body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise MalformedMessage(f"The message body is JSON, but not an object: it is a {type(content).__name__}")
    missing = [field for field in ("task", "kwargs") if field not in content]
    if missing:
        raise MalformedMessage(f"The message body has no {' and no '.join(missing)}")
    task, kwargs = content["task"], content["kwargs"]
    # Types, not values: this text is logged, and the content of a body is not.
    if not isinstance(task, str):
        raise MalformedMessage(f"The message's task is not a string: it is a {type(task).__name__}")
    if not task:
        raise MalformedMessage("The message's task is an empty string")
    if not isinstance(kwargs, dict):
        raise MalformedMessage(f"The message's kwargs are not an object: they are a {type(kwargs).__name__}")
    return task, kwargs
