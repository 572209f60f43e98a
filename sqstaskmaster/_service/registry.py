"""The tasks of a worker: what the kwargs of their messages must fit, and how to make a handler from them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqstaskmaster._service.function_handler import FunctionHandler
from sqstaskmaster.errors import ArgumentsDoNotFit, UnknownTask
from sqstaskmaster.message_handler import MessageHandler
from sqstaskmaster.process_handler import ProcessMessageHandler

# What the worker decides about a task. A handler whose constructor passes on all its arguments would take them from the
# message, and a producer could lift the worker's limits.
_WORKERS_OWN = frozenset(
    {
        "message",
        "sqs_timeout",
        "alarm_timeout",
        "hard_timeout",
        "term_grace",
        "start_method",
        "max_memory",
        "dead_letter",
        "max_continuations",
        "clock",
    }
)

_NO_MESSAGE: Any = None

# The manager's; a handler class has its own method.
Notify = Callable[..., Any] | None


class Entry(NamedTuple):
    """One task: `fits(kwargs)` raises TypeError if they do not; `make(message, kwargs, notify)` returns the handler.

    `isolated`: it runs in a process of its own. `start_method`: how that process starts; None if unknown or undecided.
    `quick`: making the handler runs no user code. `hard_timeout`: its limit as far as known, in seconds.
    `dead_letters`: whether it names exceptions without retry. `without_max_memory`: whether it is known to have no
    memory limit.
    """

    fits: Callable[[Mapping[str, Any]], object]
    make: Callable[[Any, Mapping[str, Any], Notify], MessageHandler]
    expected: str
    isolated: bool
    quick: bool
    hard_timeout: float
    dead_letters: bool = False
    without_max_memory: bool = False
    start_method: str | None = None


class Registry:
    """Task name -> Entry."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """:raises ValueError: for a name that is invalid, or taken."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"A task's name must be a non-empty string, not {name!r}")
        if name in self._entries:
            raise ValueError(f"There is a task {name!r} already: give each its own name")
        self._entries[name] = entry

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> list[tuple[str, Entry]]:
        return list(self._entries.items())

    def entry_for(self, task: str, kwargs: Mapping[str, Any]) -> Entry:
        """The task's entry, after a check that these kwargs fit it.

        :raises UnknownTask, ArgumentsDoNotFit: if there is none.
        """
        entry = self._entries.get(task)
        if entry is None:
            raise UnknownTask(task, sorted(self._entries))
        try:
            entry.fits(kwargs)
        except TypeError as error:
            raise ArgumentsDoNotFit(task, error, entry.expected) from None
        return entry

    def handler_for(self, task: str, kwargs: Mapping[str, Any], message: Any, notify: Notify = None) -> MessageHandler:
        """The handler that runs this task.

        :raises UnknownTask, ArgumentsDoNotFit: if there is none.
        """
        entry = self.entry_for(task, kwargs)
        try:
            return entry.make(message, kwargs, notify)
        except Exception as error:
            raise ArgumentsDoNotFit(task, repr(error), entry.expected) from error


def of_class(name: str, handler: Callable[..., MessageHandler], timeouts: Mapping[str, Any]) -> Entry:
    """The entry of a handler class, or of a callable that returns handlers.

    It is constructed with those of the worker's timeouts that it takes; a handler that sets its own need take none.

    :raises TypeError: if it cannot be constructed that way, or would not run its task.
    """
    if not callable(handler):
        raise TypeError(f"The handler of task {name!r} must be a handler class, not {handler!r}")
    called = getattr(handler, "__name__", repr(handler))
    isolated = False
    if isinstance(handler, type):
        if not issubclass(handler, MessageHandler):
            raise TypeError(
                f"The handler of task {name!r} must be a class of MessageHandler or ProcessMessageHandler, not "
                f"{called}; a plain function becomes a task with @worker.task({name!r})"
            )
        _check_runs(f"{called}.run(), of task {name!r},", handler.run)
        if issubclass(handler, ProcessMessageHandler):
            isolated = True
            _check_block_is_ours(name, handler)
    signature = inspect.signature(handler)
    set_already = handler.keywords if isinstance(handler, functools.partial) else {}
    given = {name: value for name, value in _taken(signature, timeouts).items() if name not in set_already}
    try:
        signature.bind_partial(None, **given)
    except TypeError as error:
        raise TypeError(
            f"The handler of task {name!r} cannot be constructed as {called}(message, {'=..., '.join(given)}=..., "
            f"**kwargs): {error}"
        ) from error
    named = _names(signature)

    def fits(kwargs: Mapping[str, Any]) -> object:
        _check_not_lifted(kwargs, _own_names(handler, named - set(given)))
        _check_known(signature, {**given, **kwargs})
        return signature.bind(None, **given, **kwargs)

    return Entry(
        fits=fits,
        make=lambda message, kwargs, notify: handler(message, **given, **kwargs),
        expected=f"{called}{signature}",
        isolated=isolated,
        start_method=_default_of(signature, "start_method"),
        quick=False,
        hard_timeout=timeouts["hard_timeout"],
    )


def _names(signature: inspect.Signature) -> set[str]:
    return {p.name for p in signature.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def _check_known(signature: inspect.Signature, kwargs: Mapping[str, Any]) -> None:
    """:raises TypeError: for names that it does not take. `bind` would report a missing name before a misspelt one."""
    known = _names(signature)
    unknown = [name for name in kwargs if name not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")


def of_function(name: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> Entry:
    """The entry of a plain function, which runs in a process of its own.

    :raises TypeError: for anything but a function that takes keyword arguments and has done its work when it returns.
    """
    called = getattr(function, "__name__", repr(function))
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"Task {name!r} must be a plain function, not {function!r}: call what you want from one")
    _check_runs(f"The function {called}(), of task {name!r},", function)
    signature = inspect.signature(function)
    unnamed = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if unnamed:
        raise TypeError(
            f"Task {name!r}: {called}{signature} takes {', '.join(unnamed)} by position only, and tasks are called "
            "with keyword arguments"
        )

    def fits(kwargs: Mapping[str, Any]) -> object:
        _check_known(signature, kwargs)
        return signature.bind(**kwargs)

    return Entry(
        fits=fits,
        make=lambda message, kwargs, notify: FunctionHandler(message, function, kwargs, notify=notify, **settings),
        expected=f"{called}{signature}",
        isolated=True,
        start_method=settings["start_method"],
        quick=True,
        hard_timeout=settings["hard_timeout"],
        dead_letters=bool(settings.get("dead_letter")),
        without_max_memory=settings.get("max_memory") is None,
    )


def check_settings(settings: Mapping[str, Any]) -> None:
    """:raises TypeError, ValueError: for invalid settings of a function's task."""
    FunctionHandler(_NO_MESSAGE, check_settings, {}, **settings)


def _default_of(signature: inspect.Signature, name: str) -> Any:
    """The default of a parameter that a constructor names; None if it has none."""
    parameter = signature.parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _taken(signature: inspect.Signature, timeouts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the timeouts that a constructor takes."""
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(timeouts)
    return {name: value for name, value in timeouts.items() if name in signature.parameters}


def _check_not_lifted(kwargs: Mapping[str, Any], own: set[str]) -> None:
    lifted = sorted(_WORKERS_OWN & set(kwargs) - own)
    if lifted:
        raise TypeError(f"{', '.join(lifted)}: the worker decides that, not a message")


def _own_names(handler: Any, named: set[str]) -> set[str]:
    """The names in its signature that are the user's own, so that a message may set them.

    Not what this package's constructors take, nor what a partial sets: a keyword of the message would replace it.
    """
    while True:
        if isinstance(handler, functools.partial):
            named, handler = named - set(handler.keywords), handler.func
        elif hasattr(handler, "__wrapped__"):  # where a signature is taken from
            handler = handler.__wrapped__
        else:
            break
    constructor = getattr(handler, "__init__", None) if isinstance(handler, type) else handler
    return set() if str(getattr(constructor, "__module__", "")).startswith("sqstaskmaster.") else named


def _check_runs(what: str, function: Any) -> None:
    """Refuse a callable that returns something yet to be run: it would be deleted as done without having run."""
    called = (function, getattr(type(function), "__call__", None))  # or a callable object
    if any(map(inspect.iscoroutinefunction, called)):
        raise TypeError(f"{what} is async: write a plain function that calls asyncio.run(...)")
    if any(map(inspect.isgeneratorfunction, called)) or any(map(inspect.isasyncgenfunction, called)):
        raise TypeError(f"{what} is a generator, which does nothing when it is called: write a plain function")


def _check_block_is_ours(name: str, handler: type) -> None:
    for method in ("__enter__", "__exit__"):
        if getattr(handler, method) is not getattr(ProcessMessageHandler, method):
            raise TypeError(
                f"The handler of task {name!r}, {handler.__name__}, has an {method} of its own, and a Worker enters no "
                "block: put it into run(), or into Worker(around=...)"
            )
