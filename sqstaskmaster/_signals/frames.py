"""Where a signal has landed: whether an exception that its handler raises there would reach the intended code.

The only module that looks at frames: the interrupted one is all that Python gives a handler.
"""

from __future__ import annotations

import contextlib
import dis
import sys
import threading
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType, GeneratorType
from typing import Any

from sqstaskmaster._signals import forks


def is_outside_body(frame: FrameType | None, kind: type) -> bool:
    """Whether `frame`, where a signal landed, is entering or leaving a `with` block of a manager of that kind.

    An exception raised there would not reach the block: it would escape, and `__exit__` would never run or be cut off.
    The same holds for Python's fork hooks, which would swallow it.
    """
    if isinstance(frame, FrameType) and (_is_unwinding(frame) or _is_passing_on(frame)):
        return True
    return any(each.f_code in forks.HOOKS or _enters_or_leaves(each, kind) for each in _outwards(frame))


def is_forking(frame: FrameType | None) -> bool:
    """Whether `frame`, where a signal landed, is in one of our fork hooks."""
    return any(each.f_code in forks.HOOKS for each in _outwards(frame))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while isinstance(frame, FrameType):  # code that calls a handler by hand may pass anything
        yield frame
        frame = frame.f_back


def _enters_or_leaves(frame: FrameType, kind: type) -> bool:
    code = frame.f_code
    is_method = code.co_name in ("__enter__", "__exit__") and code.co_argcount > 0
    return is_method and isinstance(frame.f_locals.get(code.co_varnames[0]), kind)


def _is_passing_on(frame: FrameType) -> bool:
    """Whether contextlib, in this frame, is about to enter or leave a block for its caller, or has just done so.

    That takes microseconds, as long as this frame itself is running and what it calls is written in Python. While it
    waits for C code (a lock, a callback), a task may hang for ever, and an exception goes where it should.
    """
    for inside in _outwards(frame):
        if inside.f_code.co_filename != contextlib.__file__:
            return False
        manager = inside.f_locals.get("self")
        if isinstance(manager, (contextlib.ExitStack, contextlib.AsyncExitStack)):
            if inside.f_code.co_name == "enter_context":
                called = getattr(type(inside.f_locals.get("cm")), "__enter__", None)
            elif inside.f_lineno in _CALLBACK_LINES.get(inside.f_code, ()):
                called = inside.f_locals.get("cb")
            else:
                return True
            return inside is frame and _is_of_python(called)
        if isinstance(manager, contextlib._GeneratorContextManager) and isinstance(manager.gen, GeneratorType):
            decorated = inside.f_locals.get("func")
            return decorated is None or inside is not frame or _is_of_python(decorated)
    return False


def _is_of_python(called: Any) -> bool:
    return isinstance(getattr(called, "__func__", called), FunctionType)


def _lines_that_load(code: CodeType, name: str) -> frozenset[int]:
    """The lines on which a function reads one of its local variables."""
    offsets = {
        instruction.offset
        for instruction in dis.get_instructions(code)
        if instruction.opname.startswith("LOAD_FAST")
        and name in (instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,))
    }
    return frozenset(line for start, end, line in code.co_lines() if line and not offsets.isdisjoint(range(start, end)))


# The lines where an ExitStack calls what was pushed, inside its `try`. If a Python version names the variable
# differently, there are none: the alarm for a task that hangs there then only repeats, as if contextlib were leaving
# the block.
_CALLBACK_LINES = {
    code: _lines_that_load(code, "cb")
    for code in (contextlib.ExitStack.__exit__.__code__, contextlib.AsyncExitStack.__aexit__.__code__)
}


def _is_unwinding(frame: FrameType) -> bool:
    """Whether an exception has just been raised in `frame`, and its `except`, `finally` or `__exit__` has not begun.

    Python 3.10 runs signal handlers there. Later versions do so only at the end of calls, the start of functions and
    backward jumps, where a `with` block is either intact or in its `__exit__`; but see `raise_after_jump`.
    """
    traceback = sys.exc_info()[2]
    return traceback is not None and traceback.tb_frame is frame and traceback.tb_lasti == frame.f_lasti


def raise_after_jump(frame: FrameType | None, error: BaseException) -> bool:
    """Have `error` raised one instruction later, where one raised here would pass by the block round the loop.

    From 3.12 on the compiler leaves the jump back at the end of some loops out of the range of the `with` or `try`
    that they are in, and that jump is where a signal lands. `while busy: pass` runs no other instruction that takes
    signals: to wait for the next one does not help. The target of the jump is in the range.

    :param frame: where the signal landed. What its callers are at is a call, which is always in the range.
    :return: False where it can be raised here.
    """
    if sys.version_info < (3, 12) or not isinstance(frame, FrameType) or not _is_left_out(frame):
        return False
    monitoring, code, main = sys.monitoring, frame.f_code, threading.get_ident()
    event = monitoring.events.INSTRUCTION
    tool = next((number for number in _FREE_TOOLS if monitoring.get_tool(number) is None), None)
    if tool is None:
        return False

    def at_next(_: CodeType, offset: int) -> None:
        if threading.get_ident() != main:
            return
        monitoring.set_local_events(tool, code, monitoring.events.NO_EVENTS)
        monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)
        if sys._getframe(1) is frame:  # else another signal's handler has raised something meanwhile
            raise error

    monitoring.use_tool_id(tool, "sqstaskmaster")
    monitoring.register_callback(tool, event, at_next)
    monitoring.set_local_events(tool, code, event)
    return True


# Those that are nobody's by name: see the documentation of sys.monitoring.
_FREE_TOOLS = (4, 3)


def _is_left_out(frame: FrameType) -> bool:
    """Whether `frame` is at a jump back whose target has another exception handler."""
    bytecode = dis.Bytecode(frame.f_code)
    for instruction in bytecode:
        if instruction.offset == frame.f_lasti:
            return instruction.opname.startswith("JUMP_BACKWARD") and _handler_at(bytecode, frame.f_lasti) != (
                _handler_at(bytecode, instruction.argval)
            )
    return False


def _handler_at(bytecode: dis.Bytecode, offset: int) -> int | None:
    """The offset at which what is raised at `offset` is handled."""
    entries = getattr(bytecode, "exception_entries", ())  # since Python 3.11
    return next((entry.target for entry in entries if entry.start <= offset < entry.end), None)
