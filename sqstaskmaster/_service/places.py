"""Where the sockets of this machine's workers are, and why one cannot be reached.

A worker's socket is in the folder `sqstaskmaster-UID` in its directory for temporary files. Another process may have
another TMPDIR, or see another /tmp (systemd's PrivateTmp). On Linux the kernel lists the sockets of all processes with
their paths, and /proc/PID/root leads to the files as that process sees them.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NAME = "sqstaskmaster-"
_BOUND = re.compile(rf"(/.*/{_NAME}([0-9]{{1,10}}))/([0-9]{{1,19}})-[0-9a-f]+\.sock")

# The sockets of every process in this network namespace; missing outside Linux.
_LISTED = "/proc/net/unix"


class Place(NamedTuple):
    """A folder with sockets, and the user whose workers made it."""

    folder: Path
    uid: int


class Found(NamedTuple):
    """The folders whose workers can be asked.

    `troubles`: for each worker that cannot be reached a sentence with the remedy. `others`: the users whose workers are
    here but not visible to this user.
    """

    places: list[Place]
    troubles: list[str]
    others: list[int]


class _Socket(NamedTuple):
    path: Path
    uid: int
    pid: int


def folder_of(uid: int) -> Path:
    """Where this process would look for the workers of a user."""
    return Path(tempfile.gettempdir(), f"{_NAME}{uid}")


def check(folder: Path, uid: int) -> None:
    """:raises OSError: if others could have made the folder, or can enter it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not a folder that only user {uid} can enter: remove it")


def look() -> Found:
    """Find this user's workers; as root, everybody's."""
    me = os.geteuid()
    own = folder_of(me)
    places: dict[Path, int] = {own: me}
    troubles: dict[str, None] = {}  # each once
    others: set[int] = set()
    if me == 0:
        try:
            names = sorted(os.listdir(own.parent))
        except OSError as error:
            names = []
            troubles[f"Cannot look into {own.parent}: {error.strerror}"] = None
        places |= {own.with_name(n): int(n[len(_NAME) :]) for n in names if re.fullmatch(rf"{_NAME}[0-9]{{1,10}}", n)}
    for bound in _listed():
        if me not in (0, bound.uid):
            others.add(bound.uid)
        elif (path := _seen_from_here(bound)) is not None:
            places[path.parent] = bound.uid
        elif bound in set(_listed()):  # it has not just ended
            troubles[
                f"Cannot reach worker {bound.pid} of user {bound.uid}: it sees {bound.path}, and this command does not "
                "(another container, or systemd's PrivateTmp). Look as root, or inside that container"
            ] = None
    found: dict[tuple[int, int], Place] = {}
    for folder, uid in places.items():
        try:
            check(folder, uid)
            os.listdir(folder)
            found.setdefault((folder.stat().st_dev, folder.stat().st_ino), Place(folder, uid))
        except FileNotFoundError:
            pass  # no worker has created it
        except OSError as error:
            remedy = f". Look as user {uid}, or as root with CAP_DAC_OVERRIDE" if error.errno else ""
            troubles[f"Cannot look into {folder}: {error.strerror or error}{remedy}"] = None
    return Found(list(found.values()), list(troubles), sorted(others))


def where() -> str:
    """Where `look` looks, and for whose workers, in words."""
    me = os.geteuid()
    whose, folder = ("every user", folder_of(0).with_name(f"{_NAME}*")) if me == 0 else (f"user {me}", folder_of(me))
    looked = f"looked for workers of {whose} in {folder}"
    return f"{looked} and {_LISTED}" if os.path.exists(_LISTED) else f"{looked}; a worker's TMPDIR must be the same"


def _listed() -> Iterator[_Socket]:
    """The sockets of workers that the kernel lists, of all users."""
    try:
        with open(_LISTED, "rb") as listed:
            lines = listed.read().splitlines()
    except OSError:
        return
    for line in lines:
        found = _BOUND.fullmatch(os.fsdecode(line.split(b" ", 7)[-1]).strip())
        if found:
            yield _Socket(Path(found[0]), int(found[2]), int(found[3]))


def _seen_from_here(bound: _Socket) -> Path | None:
    for path in (bound.path, Path(f"/proc/{bound.pid}/root", *bound.path.parts[1:])):
        try:
            path.lstat()
        except PermissionError:
            return path if path == bound.path else None  # reported as a folder that cannot be looked into
        except OSError:
            continue
        return path
    return None
