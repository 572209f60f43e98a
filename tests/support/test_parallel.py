"""What runs the modules side by side, on modules of its own."""

import os
import re
import subprocess
import sys
import tempfile
import textwrap
import unittest
from unittest import mock

from tests import guard
from tests.support import DEADLINE_SECONDS, parallel

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(guard.__file__)))

PACKAGE = """
import os

def load_tests(loader, found, pattern):
    from tests.support.parallel import side_by_side

    here = os.path.dirname(os.path.abspath(__file__))
    found.addTests(loader.discover(here, pattern or "test*.py", os.path.dirname(here)))
    return side_by_side(found)
"""

ENDS = """
import unittest

class Ends(unittest.TestCase):
    def test_well(self):
        pass

    def test_failing(self):
        self.assertEqual(1, 2)

    def test_raising(self):
        raise KeyError("the key")

    def test_skipped(self):
        self.skipTest("for a reason")

    @unittest.expectedFailure
    def test_as_expected(self):
        self.fail()

    @unittest.expectedFailure
    def test_better_than_expected(self):
        pass

    def test_parts(self):
        for part in range(3):
            with self.subTest(part=part):
                self.assertNotEqual(1, part)

class Unprepared(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise OSError("nothing is prepared")

    def test(self):
        pass
"""

DIES = """
import os, unittest

class Dies(unittest.TestCase):
    def test_dies(self):
        os._exit(3)
"""

GOES_ON = """
import os, unittest

class GoesOn(unittest.TestCase):
    def test_closes(self):
        os.closerange(3, 256)

    def test_goes_on(self):
        pass
"""


@unittest.skipUnless(sys.platform.startswith("linux"), "one after the other, where it is not Linux")
class SideBySideTest(unittest.TestCase):
    def run_suite(self, processes, *options, **modules):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        os.mkdir(os.path.join(folder.name, "suite"))
        for name, source in {"__init__": PACKAGE, **modules}.items():
            with open(os.path.join(folder.name, "suite", f"{name}.py"), "w") as module:
                module.write(textwrap.dedent(source))
        run = subprocess.run(
            [sys.executable, "-m", "unittest", "-v", *options],
            cwd=folder.name,
            env={**os.environ, "PYTHONPATH": ROOT, parallel.PROCESSES: str(processes)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        return run.returncode, run.stderr

    def lines(self, printed):
        """What is said of each test as a whole, of each that went wrong, and in sum; less how long it took."""
        # Some releases of Python say of a test whose parts failed nothing in its line, and go on in it.
        printed = re.sub(r"^test_parts \(.*?\) \.\.\. ", "", printed, flags=re.M)
        said = re.findall(r"^test.* \.\.\. \w.*$|^(?:ERROR|FAIL): .*$|^Ran \d+ tests|^FAILED.*$", printed, re.M)
        return sorted(line for line in said if not line.startswith("test_parts"))

    def test_it_prints_what_one_process_prints(self):
        for options in ((), ("-k", "raising", "-k", "well")):
            with self.subTest(options=options):
                one, two = (
                    self.run_suite(n, *options, test_a=ENDS, test_b=GOES_ON, test_c="import nothing_so_named")
                    for n in (1, 2)
                )
                self.assertEqual(one[0], two[0], two[1])
                self.assertEqual(self.lines(one[1]), self.lines(two[1]))
                self.assertIn("KeyError: 'the key'", two[1])

    def test_a_process_that_dies_fails_its_test_and_the_others_go_on(self):
        code, printed = self.run_suite(2, test_a=DIES, test_b=DIES, test_c=DIES, test_d=GOES_ON)
        self.assertEqual(1, code)
        self.assertEqual(3, printed.count("the process of this test ended with 3"), printed)
        self.assertIn("ERROR: test_dies (suite.test_c.Dies", printed)
        self.assertEqual(2, printed.count("... ok"), printed)
        self.assertIn("Ran 5 tests", printed)

    def test_a_process_that_dies_before_it_runs_anything_fails_the_run(self):
        code, printed = self.run_suite(
            2, test_a="import os, sys\nif 'suite' in sys.argv[0] or 'parallel' in sys.argv[0]: os._exit(5)\n" + GOES_ON
        )
        self.assertNotEqual(0, code, printed)
        self.assertIn("the process of this test ended with 5", printed)

    def test_a_run_whose_folder_is_tidied_away_fails_and_does_not_start_processes_for_ever(self):
        tidied = DIES.replace("os._exit(3)", "__import__('shutil').rmtree(__import__('sys').argv[1]); os._exit(3)")
        code, printed = self.run_suite(2, test_a=tidied, test_b=tidied)
        self.assertNotEqual(0, code, printed)
        self.assertIn("the process of this test ended with", printed)

    def test_a_module_that_cannot_be_imported_leaves_their_time_to_the_others(self):
        waits = GOES_ON.replace("os.closerange(3, 256)", "pass").replace("pass", "import time; time.sleep(0.7)")
        with mock.patch.dict(os.environ, {guard.LIMIT: "1"}):
            code, printed = self.run_suite(2, test_a="import nothing_so_named", test_b=waits, test_c=waits)
        self.assertEqual(1, code)
        self.assertIn("FAILED (errors=1)", printed)
        self.assertNotIn("Given up", printed)

    def test_with_failfast_it_ends_at_the_first_that_fails(self):
        late = GOES_ON.replace("pass", "import time; time.sleep(3600)")
        code, printed = self.run_suite(2, "-f", test_a=ENDS, test_b=late)
        self.assertEqual(1, code)
        self.assertIn("FAILED (", printed)
