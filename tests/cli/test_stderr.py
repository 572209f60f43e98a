"""Standard error that makes no worker wait for long: pipes that nobody reads, sockets, files, readers that leave."""

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from sqstaskmaster._cli import stderr
from sqstaskmaster._cli.stderr import Stderr
from tests.support import DEADLINE_SECONDS


class TestStderr(unittest.TestCase):
    def pipe(self):
        reading, writing = os.pipe()
        for end in (reading, writing):
            self.addCleanup(close, end)
        return reading, writing

    def full_pipe(self):
        """A pipe with no room left. Its writing end stays one that blocks, as it is for everybody who shares it."""
        reading, writing = self.pipe()
        filled = fill(writing)
        return reading, writing, filled

    def assert_only_the_first_waits(self, written, text, number):
        """Whoever reads it has stopped reading: one line finds that out, and no other waits."""
        with mock.patch.object(written, "_wait", wraps=written._wait) as waits:
            while not waits.called:
                written.write(text)
            found = waits.call_count
            for _ in range(number):
                written.write(text)
                self.assertEqual(found, waits.call_count)

    def test_a_line_is_written_whole_with_a_line_end(self):
        reading, writing = self.pipe()
        Stderr(writing).write("worked \ud800 Größe")
        self.assertEqual("worked \\ud800 Größe\n".encode(), os.read(reading, 4096))

    def test_a_line_longer_than_the_pipe_is_written_whole_to_whoever_reads(self):
        reader = subprocess.Popen(
            [sys.executable, "-c", "import sys; print(len(sys.stdin.buffer.read()))"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(reader.kill)
        written = Stderr(reader.stdin.fileno())
        written.write("x" * 1_000_000)
        os.close(written._own)
        self.assertEqual(b"1000001\n", reader.communicate(timeout=DEADLINE_SECONDS)[0])

    def test_nobody_waits_long_for_a_reader_that_does_not_read_and_the_next_lines_not_at_all(self):
        _, writing, _ = self.full_pipe()
        self.assert_only_the_first_waits(Stderr(writing), "line", 1000)

    def test_what_was_lost_is_counted_when_it_is_read_again(self):
        reading, writing, filled = self.full_pipe()
        written = Stderr(writing)
        for number in range(3):
            written.write(f"line {number}")
        drain(reading, filled)
        written.write("line 3")
        written.write("line 4")
        self.assertEqual(b"3 lines are missing here: nobody read them\nline 3\nline 4\n", os.read(reading, 4096))

    def test_a_line_that_was_cut_is_completed_first(self):
        reading, writing = self.pipe()
        room = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        written = Stderr(writing)
        written.write("a" * room)  # the line end does not fit
        self.assertEqual(b"a" * room, os.read(reading, room))
        written.write("next")
        self.assertEqual(b"\nnext\n", os.read(reading, room))

    def test_it_leaves_the_pipe_a_blocking_one_for_everybody_else(self):
        _, writing = self.pipe()
        Stderr(writing).write("line")
        self.assertTrue(os.get_blocking(writing))

    def test_a_socket_that_nobody_reads_is_not_waited_for_and_stays_a_blocking_one(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        written = Stderr(ours.fileno())
        written.write("first")
        self.assertEqual(b"first\n", theirs.recv(100))
        self.assert_only_the_first_waits(written, "x" * 1000, 2000)
        self.assertTrue(os.get_blocking(ours.fileno()))

    def test_a_file_is_appended_to_where_the_others_are_in_it(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "log")
            with open(path, "wb", buffering=0) as file:
                file.write(b"before\n")
                Stderr(file.fileno()).write("line")
                file.write(b"after\n")
            self.assertEqual("before\nline\nafter\n", path.read_text())

    def test_a_reader_that_has_left_is_no_error(self):
        reading, writing = self.pipe()
        written = Stderr(writing)
        os.close(reading)
        written.write("line")
        os.close(writing)
        written.write("line")

    def test_a_descriptor_that_a_task_closed_and_something_else_got_is_not_written_to(self):
        reading, writing = self.pipe()
        written = Stderr(writing)
        written.write("first")
        own = written._own
        with tempfile.TemporaryFile() as other:
            os.dup2(other.fileno(), own)
            written.write("second")
            self.assertEqual(0, os.fstat(other.fileno()).st_size)
        os.close(own)
        self.assertEqual(b"first\nsecond\n", os.read(reading, 4096))

    def test_without_proc_a_pipe_that_nobody_reads_is_not_waited_for_either(self):
        reading, writing, filled = self.full_pipe()
        written = Stderr(writing)
        written._opened = lambda found: None
        self.assert_only_the_first_waits(written, "line", 100)
        drain(reading, filled)
        written.write("x" * 2000)
        self.assertTrue(os.read(reading, 8192).endswith(b"x\n"))

    def test_a_signal_is_handled_while_a_reader_is_waited_for(self):
        _, writing, _ = self.full_pipe()
        code = """
import os, signal, sys, time
from sqstaskmaster._cli import stderr
stderr._PATIENCE_SECONDS = 3600
signal.signal(signal.SIGALRM, lambda *_: os._exit(7))
signal.setitimer(signal.ITIMER_REAL, 0.1)
stderr.STDERR.write("line")
"""
        ended = subprocess.run([sys.executable, "-c", code], stderr=writing, timeout=DEADLINE_SECONDS)
        self.assertEqual(7, ended.returncode)

    def test_the_patience_is_a_second(self):
        self.assertEqual(1.0, stderr._PATIENCE_SECONDS)


def close(descriptor):
    try:
        os.close(descriptor)
    except OSError:
        pass


def fill(writing):
    """Write until there is no room; how much it was."""
    os.set_blocking(writing, False)
    filled = 0
    try:
        while True:
            filled += os.write(writing, b"\0" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
        return filled


def drain(reading, size):
    while size:
        size -= len(os.read(reading, size))


if __name__ == "__main__":
    unittest.main()
