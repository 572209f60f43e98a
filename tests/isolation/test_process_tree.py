"""What is known of processes, however much the kernel tells."""

import importlib.util
import os
import signal
import subprocess
import sys
import unittest
from unittest import mock

from sqstaskmaster._isolation import child as isolation
from sqstaskmaster._isolation import process_tree


@unittest.skipUnless(sys.platform == "linux", "it is read from /proc")
class ProcessTreeTest(unittest.TestCase):
    def test_a_kernel_that_lists_only_parents_has_the_same_processes_below(self):
        shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo up; wait"], stdout=subprocess.PIPE)
        self.addCleanup(shell.communicate)
        shell.stdout.readline()
        found = process_tree.descendants(os.getpid())
        for pid in (shell.pid, *process_tree.descendants(shell.pid)):
            self.addCleanup(process_tree.kill, pid, signal.SIGKILL)
        with mock.patch.object(process_tree, "_kernel_lists_children", lambda: False):
            below = process_tree.descendants(shell.pid)
            self.assertEqual(1, len(below))
            self.assertLessEqual({shell.pid, *below}, {*found} & {*process_tree.descendants(os.getpid())})

    def test_a_library_is_loaded_or_not(self):
        self.assertIn("libc", process_tree.loaded("libc")[0])
        self.assertEqual([], process_tree.loaded("no-such-library"))

    def test_nothing_is_below_a_process_that_is_gone(self):
        gone = os.fork()
        if gone == 0:
            os._exit(0)
        os.waitpid(gone, 0)
        self.assertEqual([], process_tree.descendants(gone))

    def test_what_a_marked_process_forks_before_it_ends_is_found_though_it_was_not_there_to_be_listed(self):
        go, told = os.pipe(), os.pipe()
        keeper = os.getpid()
        first = os.fork()
        if first == 0:
            with mock.patch.object(os, "getpid", lambda: keeper):
                process_tree.mark_self()
            os.close(go[1])
            os.read(go[0], 1)
            if os.fork() == 0:
                os.write(told[1], b"%d\n" % os.getpid())
                os.read(go[0], 1)  # until the test is over
            os._exit(0)
        for end in (*go, *told):
            self.addCleanup(os.close, end)
        daemons, list_folder = [], os.listdir

        def listed_too_early(path):
            found = list_folder(path)
            if not daemons:
                os.write(go[1], b"x")
                os.waitpid(first, 0)
                daemons.append(int(os.read(told[0], 100)))
            return found

        with mock.patch.object(os, "listdir", listed_too_early):
            self.assertEqual(daemons, process_tree.marked(keeper))


class LackingTest(unittest.TestCase):
    @unittest.skipUnless(process_tree.LINUX, "elsewhere none of it is there")
    def test_what_a_sandbox_refuses_is_said(self):
        self.assertEqual([], process_tree.lacking())
        with mock.patch.object(process_tree, "can_list", return_value=False):
            [said] = process_tree.lacking()
        self.assertIn("no /proc: max_memory is not enforced", said)
        with mock.patch.object(process_tree, "_prctl", return_value=lambda option, value: -1):
            said = process_tree.lacking()
        self.assertEqual(
            ["prctl(PR_SET_CHILD_SUBREAPER)", "prctl(PR_SET_PDEATHSIG)"], [each.split()[0] for each in said]
        )

    def test_it_is_said_once(self):
        isolation.warn_of_what_is_lacking.cache_clear()
        self.addCleanup(isolation.warn_of_what_is_lacking.cache_clear)
        with (
            mock.patch.object(process_tree, "lacking", return_value=["prctl is refused"]),
            self.assertLogs("sqstaskmaster", "WARNING") as logs,
        ):
            isolation.warn_of_what_is_lacking()
            isolation.warn_of_what_is_lacking()
        self.assertEqual(1, len(logs.output))


class ThreadsTest(unittest.TestCase):
    def warned(self, code):
        script = f"{code}\nfrom sqstaskmaster._isolation.template import _warn_of_threads; _warn_of_threads()"
        return subprocess.run([sys.executable, "-c", script], stderr=-1, timeout=60, check=True).stderr.decode()

    def setUp(self):
        if not importlib.util.find_spec("numpy"):
            self.skipTest("numpy is not installed")

    def test_the_threads_of_openblas_are_none_to_warn_of(self):
        self.assertEqual("", self.warned("import numpy"))

    def test_those_of_others_are_warned_of_beside_them(self):
        # A thread that Python's threading knows nothing of, as one of native code.
        other = "import _thread, time, numpy; _thread.start_new_thread(time.sleep, (60,))"
        self.assertIn("1 started by native code", self.warned(other))


if __name__ == "__main__":
    unittest.main()
