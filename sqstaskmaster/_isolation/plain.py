"""Plain data as JSON, with tags for what JSON lacks. The worker reads a task's messages with it: no user code runs.

    dump    value -> bytes     NotPlain if part of the value is not plain, or the whole is too large
    spoken  value -> bytes     never fails: a part that is not plain becomes its repr; so does a whole that is too large
    load    bytes -> value

Plain data are None, booleans, numbers, strings, bytes, lists, tuples, sets, dictionaries; dates, times and durations of
`datetime`; Decimal, Fraction, complex, UUID and paths. Of a subclass of one of these (a namedtuple, NumPy's
float64) the plain part arrives. Pickle would run code, import modules, and hold the interpreter as long as it likes.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import fractions
import json
import math
import pathlib
import reprlib
import uuid
from collections.abc import Callable
from typing import Any

#: The most bytes of a value, and its deepest nesting.
MAX_BYTES = 1 << 20
MAX_DEPTH = 64

#: The most characters of a repr that stands for a value that is not plain.
MAX_TEXT = 10_000

# Parsing an integer's digits takes quadratic time.
_MAX_BITS = 10_000

# The key of a tagged value: {"$": ["set", [1, 2]]}.
_TAG = "$"


class NotPlain(TypeError):
    """A value that is not plain data, or too large."""


def dump(value: Any) -> bytes:
    """The value, complete.

    :raises NotPlain: if that is not possible.
    """
    return _written(value, _refuse)


def spoken(value: Any, most: int | None = MAX_BYTES) -> bytes:
    """The value, as text if it cannot be complete.

    :param most: the most bytes it may have, None for no limit. What a task sends is limited.
    """
    try:
        return _written(value, text_of, most)
    except NotPlain:
        return _written(text_of(value), _refuse)


def load(content: bytes, most: int | None = MAX_BYTES) -> Any:
    """The value that `dump` or `spoken` was given.

    :raises ValueError: for anything else.
    """
    if most is not None and len(content) > most:
        raise ValueError(f"{len(content):,} bytes are more than {most:,}")
    try:
        return json.loads(content.decode("utf-8", "surrogatepass"), object_hook=_untagged)
    except (RecursionError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"not plain data: {error!r}") from None


def text_of(value: Any, limit: int = MAX_TEXT) -> str:
    """The repr, cut; of collections only the beginning, since one can contain itself many times over."""
    short = _Short()
    short.maxlevel = 4
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdeque = 20
    short.maxarray = short.maxlong = short.maxstring = short.maxother = limit
    try:
        return cut(short.repr(value), limit)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        """Python's own refuses long integers, and newer releases describe them by an address."""
        bits = x.bit_length()
        return f"<int of {bits:,} bits>" if bits > _MAX_BITS else super().repr_int(x, level)


def cut(text: str, limit: int) -> str:
    """The text, without its middle if it is longer than `limit`."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"


def _written(value: Any, otherwise: Callable[[Any], Any], most: int | None = MAX_BYTES) -> bytes:
    try:
        plain = _Walk(otherwise, most).plain(value, 0)
        content = json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except NotPlain:
        raise
    except Exception as error:  # a user's subclass whose methods raise
        raise NotPlain(f"{type(error).__name__}: {error}") from error
    if most is not None and len(content) > most:
        raise NotPlain(f"{len(content):,} bytes are more than {most:,}")
    try:
        # Fails for a set of a user's hashable lists, say. Checked here: a verdict that the worker cannot read is lost.
        load(content, most)
    except ValueError as error:
        raise NotPlain(f"it cannot be read again: {error}") from error
    return content


def _refuse(value: Any) -> Any:
    raise NotPlain(f"{type(value).__name__} is not plain data")


class _Walk:
    """Turns a value into what JSON can write. Stops early if there is too much, so that no value takes long."""

    def __init__(self, otherwise: Callable[[Any], Any], most: int | None) -> None:
        self._otherwise = otherwise
        self._left: float = math.inf if most is None else most

    def plain(self, value: Any, depth: int) -> Any:
        self._left -= 1 + (len(value) if isinstance(value, (str, bytes, bytearray)) else 0)
        if self._left < 0 or depth > MAX_DEPTH:
            raise NotPlain(f"it is over {MAX_BYTES:,} bytes, or nested over {MAX_DEPTH} deep")
        if value is None or isinstance(value, bool):
            return value
        write = _WRITERS.get(type(value)) or _writer_of_base(value)
        return write(self, value, depth + 1) if write else self._otherwise(value)

    def integer(self, value: int, depth: int) -> Any:
        number = int.__index__(value)
        return number if number.bit_length() <= _MAX_BITS else self._otherwise(value)

    def mapping(self, value: dict[Any, Any], depth: int) -> Any:
        items = list(dict.items(value))
        if all(type(key) is str and key != _TAG for key, _ in items):
            self._left -= sum(len(key) for key, _ in items)
            return {key: self.plain(item, depth) for key, item in items}
        return {_TAG: ["dict", [[self.plain(key, depth), self.plain(item, depth)] for key, item in items]]}

    def many(self, value: Any, depth: int) -> list[Any]:
        return [self.plain(item, depth) for item in value]


def _tagged(tag: str, write: Callable[[_Walk, Any, int], Any]) -> Callable[[_Walk, Any, int], Any]:
    return lambda walk, value, depth: {_TAG: [tag, write(walk, value, depth)]}


def _as_text(tag: str, text: Callable[[Any], str] = str) -> Callable[[_Walk, Any, int], Any]:
    return _tagged(tag, lambda walk, value, depth: text(value))


def _base64(value: Any) -> str:
    return base64.b64encode(value).decode()


_WRITERS: dict[type, Callable[[_Walk, Any, int], Any]] = {
    int: _Walk.integer,
    float: lambda walk, value, depth: float.__float__(value),
    str: lambda walk, value, depth: str.__str__(value),
    dict: _Walk.mapping,
    list: lambda walk, value, depth: walk.many(list.__iter__(value), depth),
    tuple: _tagged("tuple", lambda walk, value, depth: walk.many(tuple.__iter__(value), depth)),
    set: _tagged("set", lambda walk, value, depth: walk.many(set.__iter__(value), depth)),
    frozenset: _tagged("frozenset", lambda walk, value, depth: walk.many(frozenset.__iter__(value), depth)),
    bytes: _as_text("bytes", _base64),
    bytearray: _as_text("bytearray", _base64),
    complex: _tagged("complex", lambda walk, value, depth: [value.real, value.imag]),
    datetime.datetime: _as_text("datetime", datetime.datetime.isoformat),  # before date, its base class
    datetime.date: _as_text("date", datetime.date.isoformat),
    datetime.time: _as_text("time", datetime.time.isoformat),
    datetime.timedelta: _tagged(
        "timedelta", lambda walk, value, depth: [value.days, value.seconds, value.microseconds]
    ),
    decimal.Decimal: _as_text("Decimal", decimal.Decimal.__str__),
    fractions.Fraction: _tagged("Fraction", lambda walk, value, depth: walk.many(value.as_integer_ratio(), depth)),
    uuid.UUID: _as_text("UUID", uuid.UUID.__str__),
    pathlib.PurePath: _as_text("Path"),
}


def _writer_of_base(value: Any) -> Callable[[_Walk, Any, int], Any] | None:
    return next((write for kind, write in _WRITERS.items() if isinstance(value, kind)), None)


_READERS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda content: dict(map(tuple, content)),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "bytes": base64.b64decode,
    "bytearray": lambda content: bytearray(base64.b64decode(content)),
    "complex": lambda content: complex(*content),
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda content: datetime.timedelta(*content),
    "Decimal": decimal.Decimal,
    "Fraction": lambda content: fractions.Fraction(*content),
    "UUID": uuid.UUID,
    "Path": pathlib.Path,
}


def _untagged(content: dict[str, Any]) -> Any:
    if _TAG not in content:
        return content
    tag, inner = content[_TAG]
    return _READERS[tag](inner)
