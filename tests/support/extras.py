"""What the tests need beyond the extra `dev`: without it a laptop skips, and CI fails."""

import importlib.util
import os
import unittest


def need(package, extra):
    """Skips on a laptop, fails in CI, where the package is not installed."""
    if importlib.util.find_spec(package) is None:
        lacking(f"{package} is not installed: pip install -e '.[{extra}]'")


def lacking(what):
    if os.environ.get("CI"):
        raise AssertionError(what)
    raise unittest.SkipTest(what)
