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


if __name__ == "__main__":
    unittest.main()
