"""All tests. `python -m unittest -v` runs the modules side by side, `python -m unittest tests.room.test_x` one."""

import os

from tests import guard

guard.install()


def load_tests(loader, found, pattern):
    """unittest's hook for a package. https://docs.python.org/3/library/unittest.html#load-tests-protocol"""
    from tests.support import share_endpoint
    from tests.support.parallel import side_by_side

    share_endpoint()

    here = os.path.dirname(os.path.abspath(__file__))
    found.addTests(loader.discover(here, pattern or "test*.py", os.path.dirname(here)))
    return side_by_side(found)
