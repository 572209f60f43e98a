"""Exceptions from the task's process to the worker's: described there, rebuilt here without running their code."""

from __future__ import annotations

import sys
import traceback
import types
from typing import Any

from sqstaskmaster._isolation import plain
from sqstaskmaster.errors import RemoteError

#: The most characters kept of an exception's text and of its traceback.
MAX_SUMMARY = 10_000
MAX_TRACEBACK = 100_000

# A class that defines one of these would run code of its own when it is rebuilt.
_CUSTOM = frozenset(
    ("__new__", "__setattr__", "__getattribute__", "__setstate__", "__del__", "__dict__", "__class__", "args")
)

# Attributes of built-in exceptions that are left out, as they need not be plain: AttributeError's `obj`, say.
_LEFT_OUT = frozenset(("obj", "print_file_and_line"))

# From CPython's object.h: the class was made by a `class` statement.
_HEAP_TYPE = 1 << 9


class TaskTraceback(Exception):
    """The traceback of the child process, shown as the cause of what is raised in the parent."""

    __module__ = "sqstaskmaster"  # what a traceback shows, instead of the private module

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"in the task's process:\n{self.text}"


def described(error: BaseException) -> bytes:
    """In the task's process: the exception, whole if possible, and always as text with its traceback."""
    # Without the frame that called the task: that one is ours.
    shown = error.__traceback__.tb_next if error.__traceback__ else None
    try:
        text = "".join(traceback.format_exception(type(error), error, shown))
        summary = "".join(traceback.format_exception_only(type(error), error)).strip()
    except Exception as problem:
        text = summary = f"{type(error).__name__}, whose text raised {type(problem).__name__}"
    words = {"summary": plain.cut(summary, MAX_SUMMARY), "traceback": plain.cut(text, MAX_TRACEBACK)}
    kind = type(error)
    if not _may_cross(kind):
        return plain.dump(words)
    try:
        whole = {
            "module": kind.__module__,
            "name": kind.__qualname__,
            "args": error.args,
            "state": error.__dict__,
            "fields": {name: value for name, value in _fields(error)},
        }
    except AttributeError:
        return plain.dump(words)
    # If not everything fits: what the exception holds is worth more than its traceback.
    for said in ({**words, **whole}, {"summary": words["summary"][:100], "traceback": "", **whole}):
        try:
            return plain.dump(said)
        except plain.NotPlain:
            pass
    return plain.dump(words)


def rebuilt(content: bytes, task: str) -> BaseException:
    """In the worker: the exception, or a RemoteError with its text. Its cause is the task's traceback."""
    said = plain.load(content)
    try:
        error = _made_again(said)
    except Exception:
        error = None
    if error is None:
        error = RemoteError(task, str(said["summary"]), str(said["traceback"]))
    error.__cause__ = TaskTraceback(str(said["traceback"]))
    return error


def _made_again(said: dict[str, Any]) -> BaseException | None:
    kind = _loaded_class(said["module"], said["name"]) if "name" in said else None
    if kind is None:
        return None
    error = kind.__new__(kind)
    error.args = said["args"]
    descriptors = dict(_descriptors(kind))
    for name, value in said["fields"].items():
        descriptors[name].__set__(error, value)
    error.__dict__.update(said["state"])
    return error


def _loaded_class(module: str, name: str) -> type[BaseException] | None:
    """The exception class, if it can be rebuilt here without importing or running anything."""
    # A spawned process has the script's module under another name.
    home: Any = sys.modules.get("__main__" if module == "__mp_main__" else module)
    for part in name.split("."):
        home = vars(home).get(part) if isinstance(home, (types.ModuleType, type)) else None
    return home if type(home) is type and _may_cross(home) else None


def _may_cross(kind: type) -> bool:
    classes = kind.__mro__
    if BaseException not in classes or type(kind) is not type:
        return False
    # One that would end the worker (KeyboardInterrupt) crosses as text only, unless it is made to cross.
    if Exception not in classes and not any(vars(one).get("crosses_processes") is True for one in classes):
        return False
    written = [one for one in classes if one.__flags__ & _HEAP_TYPE]
    return not any(_CUSTOM & set(vars(one)) - _usual(one) or vars(one).get("__slots__") for one in written)


def _usual(kind: type) -> frozenset[str]:
    """The names that are no override: `__dict__`, if it is what Python puts into every class."""
    return (
        frozenset(("__dict__",)) if isinstance(vars(kind).get("__dict__"), types.GetSetDescriptorType) else frozenset()
    )


def _fields(error: BaseException) -> list[tuple[str, Any]]:
    """What built-in exceptions keep outside `args` and `__dict__`: errno, filename, and so on."""
    found = []
    for name, descriptor in _descriptors(type(error)):
        try:
            value = descriptor.__get__(error)
        except AttributeError:
            continue
        if value is not None:
            found.append((name, value))
    return found


def _descriptors(kind: type) -> list[tuple[str, Any]]:
    return [
        (name, descriptor)
        for one in kind.__mro__
        if one not in (BaseException, object) and not one.__flags__ & _HEAP_TYPE
        for name, descriptor in vars(one).items()
        if isinstance(descriptor, (types.MemberDescriptorType, types.GetSetDescriptorType)) and name not in _LEFT_OUT
    ]
