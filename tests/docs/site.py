"""The site, built once for all tests that look at it."""

import atexit
import functools
import os
import pathlib
import subprocess
import sys
import tempfile

from tests.support.blocks import ROOT

BUILD_SECONDS = 100


@functools.cache
def _folder():
    folder = tempfile.TemporaryDirectory()
    atexit.register(_remove, os.getpid(), folder)
    return pathlib.Path(folder.name)


def _remove(owner, folder):
    # A process forked from this one runs the same functions when it ends.
    if os.getpid() == owner:
        folder.cleanup()


@functools.cache
def build(builder):
    """The folder with what that builder of Sphinx made, every warning being an error."""
    out = _folder()
    built = subprocess.run(
        # One set of parsed pages for all builders: the second does not read them again.
        [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-T", "-q", "-b", builder]
        + ["-d", str(out / "doctrees"), "docs", str(out / builder)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    if built.returncode:
        raise AssertionError(built.stdout + built.stderr)
    return out / builder
