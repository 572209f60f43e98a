"""What guards a run of the tests, on modules of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from tests import guard
from tests.support import DEADLINE_SECONDS, stop, wait_until, whole_lines
from tests.support.commands import alive

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(guard.__file__)))

# A test that starts what is hard to find: sessions of their own, forked and executed, nobody's child, deaf to SIGTERM.
LEAVES = """
import ctypes, os, signal, subprocess, sys, tests, time, unittest

def say(*words):
    os.write(1, ("\\n" + " ".join(map(str, words)) + "\\n").encode())  # unittest writes dots between

class Leaves(unittest.TestCase):
    def test(self):
        executed = self.executed = subprocess.Popen(["sleep", "3600"], start_new_session=True)
        say("started", executed.pid)
        forked = os.fork()
        if not forked:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if not os.fork():
                os.closerange(3, 256)
                say("started", os.getpid())
                time.sleep(3600)
            os._exit(0)
        os.waitpid(forked, 0)
        %s
"""


@unittest.skipUnless(sys.platform.startswith("linux"), "runs are guarded on Linux only")
class GuardTest(unittest.TestCase):
    def start(self, last="pass", before=(), **options):
        """A run of its own, of the one test, which does that last."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        with open(os.path.join(folder.name, "leaves.py"), "w") as module:
            module.write(LEAVES % last)
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *sys.path]), **options.pop("environ", {})}
        with open(os.path.join(folder.name, "output"), "w") as output:
            run = subprocess.Popen(
                [*before, sys.executable, "-m", "unittest", "leaves"],
                stdout=output, stderr=output, cwd=folder.name, env=environ, **{"stdin": subprocess.DEVNULL, **options},
            )  # fmt: skip
        self.addCleanup(stop, run)
        run.output = output.name
        return run

    def left(self, run):
        def found():
            return [int(line.split()[1]) for line in self.lines(run) if line.startswith("started")]

        return wait_until(lambda: len(found()) == 2 and found(), "it has started what it leaves behind")

    def lines(self, run):
        return whole_lines(run.output)

    def assert_nothing_left(self, pids):
        wait_until(lambda: not any(map(alive, pids)), "all it has started is gone", 5)

    def assert_given_up(self, run, *texts):
        pids = self.left(run)
        self.assertNotEqual(0, run.wait(DEADLINE_SECONDS))
        self.assert_nothing_left(pids)
        printed = "\n".join(self.lines(run))
        for text in texts:
            self.assertIn(text, printed)

    def test_a_run_that_has_ended_in_whatever_way_leaves_no_process(self):
        finished, terminated, killed = self.start(), self.start("time.sleep(3600)"), self.start("time.sleep(3600)")
        pids = self.left(finished) + self.left(terminated) + self.left(killed)
        self.assertEqual(0, finished.wait(DEADLINE_SECONDS), self.lines(finished))
        terminated.terminate()
        self.assertEqual(-signal.SIGTERM, terminated.wait(DEADLINE_SECONDS))
        killed.kill()
        killed.wait(DEADLINE_SECONDS)
        self.assert_nothing_left(pids)

    def test_a_test_that_lasts_too_long_fails_the_run_with_its_stack_and_is_ended_with_all_it_started(self):
        hangs = "time.sleep(3600)", "ctypes.PyDLL(None).sleep(3600)"
        deaf = "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(3600)"
        *runs, unwilling = [self.start(last, environ={guard.LIMIT: "1"}) for last in (*hangs, deaf)]
        given_up = "Given up after 1 seconds: leaves.Leaves.test"
        for run in runs:
            self.assert_given_up(run, given_up, "(most recent call first)", "leaves.py")
        self.assert_given_up(unwilling, given_up)

    def test_what_follows_a_test_is_limited_too(self):
        run = self.start("self.addClassCleanup(time.sleep, 3600)", environ={guard.LIMIT: "1"})
        self.assert_given_up(run, "Given up after 1 seconds: what follows leaves.Leaves.test")

    def test_its_clock_goes_on_in_steps_and_no_faster_than_time(self):
        began, awake = time.monotonic(), guard.awake_seconds()
        wait_until(lambda: guard.awake_seconds() > awake + 0.5, "half a second is over")
        self.assertGreater(time.monotonic() - began, 0.4)
        self.assertNotEqual(0, guard.awake_seconds())

    def test_as_process_1_too(self):
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
            self.skipTest("no permission to make a PID namespace here")
        run = self.start("time.sleep(3600)", before=unshare, environ={guard.LIMIT: "1"})
        self.assertEqual(1, run.wait(DEADLINE_SECONDS), self.lines(run))
        self.assertIn("Given up after 1 seconds: leaves.Leaves.test", self.lines(run))

    def test_a_run_in_the_background_of_a_script_takes_ctrl_c_as_in_the_foreground(self):
        run = self.start("time.sleep(3600)", before=["sh", "-c", 'trap "" INT QUIT; exec "$@" <&-', "sh"])
        self.left(run)
        run.send_signal(signal.SIGINT)
        wait_until(lambda: "KeyboardInterrupt" in self.lines(run), "it is interrupted")
        self.assertNotEqual(0, run.wait(DEADLINE_SECONDS))
