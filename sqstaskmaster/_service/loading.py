"""While the command line imports the module with its worker, no worker may run: it would run twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqstaskmaster.errors import UnsupportedContext

_module: list[str] = []


@contextlib.contextmanager
def importing(module: str) -> Iterator[None]:
    """A block in which that module is imported for its worker."""
    _module.append(module)
    try:
        yield
    finally:
        _module.pop()


def refuse_to_run() -> None:
    """:raises UnsupportedContext: while a module is imported for its worker."""
    if _module:
        raise UnsupportedContext(
            f"Module {_module[-1]!r} runs its worker while it is imported: put worker.run() under "
            'if __name__ == "__main__":'
        )
