"""What is known of processes, however much the kernel tells."""

import os
import signal
import subprocess
import sys
import unittest
from unittest import mock

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
        self.assertTrue(process_tree.has_loaded("libc"))
        self.assertFalse(process_tree.has_loaded("no-such-library"))

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


if __name__ == "__main__":
    unittest.main()
