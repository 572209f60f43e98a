"""What the tests need beyond the extra `dev`: without it a laptop skips, and CI fails."""

import importlib.util
import os
import unittest
from importlib import metadata

from packaging.requirements import Requirement


def need(package, extra):
    """Skips on a laptop, fails in CI, where the package is not installed."""
    if importlib.util.find_spec(package) is None:
        _skip_where_left_out(package, extra)
        lacking(f"{package} is not installed: pip install -e '.[{extra}]'")


def _skip_where_left_out(package, extra):
    """A marker in setup.cfg leaves out what has no wheel yet; `.ci/run` lists it."""
    for needed in map(Requirement, metadata.requires("sqstaskmaster") or ()):
        if needed.name == package and not needed.marker.evaluate({"extra": extra}):
            raise unittest.SkipTest(f"{package} is left out here: {needed.marker}")


def lacking(what):
    if os.environ.get("CI"):
        raise AssertionError(what)
    raise unittest.SkipTest(what)
