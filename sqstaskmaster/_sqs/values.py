"""How the values of a task are written as JSON, and what happens to those that JSON cannot hold.

=====================================  =================================  ==========================================
Value                                  Arrives as                         Back again
=====================================  =================================  ==========================================
None, bool, int, float, str            itself                             nothing to do
list, tuple                            list                               `tuple(value)`
dict                                   dict; keys become strings          `{int(key): ...}`
numpy number or array                  number, or list (of lists)         `numpy.array(value)`; the dtype is lost
Enum that is a str or an int           its value                          `Color(value)`
NaN, infinity                          itself, though it is no JSON (1)   nothing to do
Decimal, UUID, Path                    `str(value)` (1)                   `Decimal(text)`, `UUID(text)`, `Path(text)`
date, datetime, time                   `str(value)` (1)                   `datetime.fromisoformat(text)`
Enum of any other kind                 `str(value)`: `Color.RED` (1)      `Color[text.partition(".")[2]]`
numpy complex, datetime64, longdouble  `str(value)` (1)                   `numpy.datetime64(text)`
anything else: set, bytes, objects     `str(value)` (1)                   nothing: send what JSON holds
=====================================  =================================  ==========================================

(1) Logged at WARNING once per type, with the path of the field; refused by a strict writer. A strict writer also
refuses dictionary keys that are not strings: the one change that the lenient writer does not notice.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from sqstaskmaster._logging import get_logger
from sqstaskmaster.errors import InvalidTask

logger = get_logger(__name__)

# numpy's kinds of data that JSON has too: bool, signed, unsigned, float, text; and objects, which are checked one by
# one.
_JSON_KINDS = "biufUO"


class Writer:
    """Writes JSON. Plain values cost no more than the json module takes; only other values cost more.

    A lenient writer warns once per type (in its own lifetime) that JSON cannot hold it.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._warned_of: set[Any] = set()
        self._lock = threading.Lock()
        # One encoder for all messages: json.dumps builds a new one on every call with a `default`, which costs more
        # than the encoding of a small task.
        self._write = json.JSONEncoder(default=self._known_text, allow_nan=False).encode
        self._write_all = json.JSONEncoder(default=_text).encode

    def __reduce__(self) -> tuple[Any, ...]:
        return Writer, (self.strict,)

    def write(self, task: str, kwargs: Mapping[str, Any]) -> str:
        """The JSON of the message body.

        :raises InvalidTask: if the writer is strict and JSON cannot hold a value: names its path.
        :raises TypeError, ValueError, RecursionError: if no JSON can be made at all.
        """
        content = {"task": task, "kwargs": kwargs}
        if self.strict:
            for path, _, what in _foreign(kwargs, "", ()):
                raise InvalidTask(f"Task {task!r} cannot be sent in strict mode: {path} is {what}, which is not JSON")
        try:
            return self._write(content)
        except (_Unsaid, ValueError):
            # Written first: this raises for a cycle, which is a ValueError too.
            body = self._write_all(content)
            self._warn_of(task, kwargs)
            return body

    def _known_text(self, value: Any) -> Any:
        text = _text(value)
        if type(text) is str and type(value) not in self._warned_of:
            raise _Unsaid
        return text

    def _warn_of(self, task: str, kwargs: Mapping[str, Any]) -> None:
        for path, key, what in _foreign(kwargs, "", ()):
            with self._lock:
                if key is None or key in self._warned_of:
                    continue
                self._warned_of.add(key)
            if key is float:
                # Nothing is left to warn of, and failing first would cost every such task a second encoding.
                self._write = json.JSONEncoder(default=self._known_text).encode
                said = "%s of task %r is %s: it is sent as Python writes it, and other readers may refuse it."
            else:
                said = "%s of task %r is %s, which JSON cannot hold: it is sent as str(value) and arrives as text."
            logger.warning(
                said + " Logged once for each type; TaskManager(..., strict=True) refuses instead",
                path,
                task,
                what,
                extra={"action": "value_not_json", "task": task, "path": path},
            )


class _Unsaid(Exception):
    """Raised through the json module, to leave the fast path."""


def _text(value: Any) -> Any:
    """What to write in place of a value that json does not know."""
    plain = _plain(value)
    return str(value) if plain is value else plain


def _plain(value: Any) -> Any:
    """A numpy value as Python's own; any other as it is."""
    numpy = sys.modules.get("numpy")  # loaded if there is such a value
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)) or value.dtype.kind not in _JSON_KINDS:
        return value
    plain = value.tolist()
    return value if isinstance(plain, numpy.generic) else plain  # longdouble has no Python equivalent


def _foreign(value: Any, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, Any, str]]:
    """(path, type, description) of each value inside that JSON cannot hold. For a key, the type is None."""
    value = _plain(value)
    if value is None or isinstance(value, (str, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            yield path, float, repr(float(value))
    elif not isinstance(value, (dict, list, tuple)):
        yield path, type(value), f"a {type(value).__module__}.{type(value).__qualname__}"
    elif id(value) not in above:  # json itself refuses a cycle
        above = (*above, id(value))
        if isinstance(value, dict):
            for key, each in value.items():
                if not isinstance(key, str):
                    yield path, None, f"a dictionary with the key {key!r:.80}"
                yield from _foreign(each, f"{path}.{key}" if path else str(key), above)
        else:
            for number, each in enumerate(value):
                yield from _foreign(each, f"{path}[{number}]", above)
