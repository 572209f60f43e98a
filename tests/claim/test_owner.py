"""Only the process that entered the block settles the message. With real forks."""

import os
import sys
import tempfile
import unittest

from sqstaskmaster import ProcessMessageHandler
from sqstaskmaster._claim import owner
from sqstaskmaster.errors import TaskQuit
from tests.support.handling import FakeMessage, Handler


class Isolated(ProcessMessageHandler):
    def run(self):
        pass


class OwnerTest(unittest.TestCase):
    def setUp(self):
        self.addCleanup(self.only_parent, os.getpid())

    def only_parent(self, pid):
        if os.getpid() != pid:
            os._exit(99)  # a child that came back to the tests would run them all again

    def in_child(self, function):
        """The exit code of a forked child that runs the function, 98 where it returns; and what it wrote to stderr."""
        with tempfile.TemporaryFile() as errors:
            child = os.fork()
            if child == 0:
                os.dup2(errors.fileno(), 2)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                try:
                    function()
                finally:
                    os._exit(98)
            _, status = os.waitpid(child, 0)
            errors.seek(0)
            return os.waitstatus_to_exitcode(status), errors.read().decode()

    def leave_forked(self, handler, leave):
        """What becomes of the message while a child forked in its block leaves it; the child's exit code."""
        message = handler._message
        with handler:
            child = os.fork()
            if child == 0:
                message.delete = message.change_visibility = lambda **_: os._exit(97)
                leave()
            else:
                _, status = os.waitpid(child, 0)
                code = os.waitstatus_to_exitcode(status)
        if os.getpid() != self.pid:
            os._exit(98)
        self.assertEqual(("done", 1), (handler.outcome, message.deletes))
        return code

    def test_a_child_that_leaves_the_block_ends_and_settles_nothing(self):
        self.pid = os.getpid()
        for kind in (lambda: Handler(FakeMessage()), lambda: Isolated(FakeMessage(), 30, 10, 60)):
            self.assertEqual(0, self.leave_forked(kind(), lambda: None))
            self.assertEqual(0, self.leave_forked(kind(), lambda: sys.exit(0)))
            self.assertEqual(7, self.leave_forked(kind(), lambda: sys.exit(7)))

    def test_an_alarm_in_a_child_extends_no_claim(self):
        with Handler(FakeMessage()) as handler:
            child = os.fork()
            if child == 0:
                handler.alarm()
                os._exit(len(handler._message.changes) * 10 + bool(handler.armed()))
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            self.assertEqual(10, ended, "only that of the parent, on entering")
        self.assertEqual("done", handler.outcome)

    def test_a_child_that_notify_forked_ends_when_it_comes_out_of_the_block(self):
        class Forking(Handler):
            def notify(self, exception, context=None):
                self.child = os.fork()

        class ForkingIsolated(Isolated):
            notify = Forking.notify

            def run(self):
                raise ValueError

        for kind in (lambda: Forking(FakeMessage()), lambda: ForkingIsolated(FakeMessage(), 30, 10, 60)):
            pid = os.getpid()
            with kind() as handler:
                handler.run()
                raise ValueError
            if os.getpid() != pid:
                os._exit(98)
            self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(handler.child, 0)[1]))

    def test_a_child_that_retry_delay_forked_gives_nothing_back(self):
        pid = os.getpid()

        class Message(FakeMessage):
            def change_visibility(self, **asked):
                if os.getpid() != pid:
                    os._exit(97)
                super().change_visibility(**asked)

        class Forking(Handler):
            def retry_delay(self, exception, receive_count):
                self.child = os.fork()
                return 7

        with Forking(Message()) as handler:
            raise ValueError
        if os.getpid() != pid:
            os._exit(98)
        self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(handler.child, 0)[1]))
        self.assertEqual(7, handler._message.changes[-1])

    def test_a_child_that_fails_out_of_the_block_says_why_as_python_would(self):
        def fail():
            with Handler(FakeMessage()) as handler:
                child = os.fork()
                if child == 0:
                    raise ValueError("in the child")
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) + len(handler.notified))

        code, errors = self.in_child(fail)
        self.assertEqual(1, code)
        self.assertIn("ValueError: in the child", errors)

    def test_the_exit_code_is_what_sys_exit_was_given(self):
        for given, code in ((None, 0), (0, 0), (3, 3), (-1, 255), ("a text", 1)):
            with self.subTest(given):
                ended, errors = self.in_child(lambda: owner.leave_if_forked(os.getppid(), SystemExit(given)))
                self.assertEqual(code, ended)
                self.assertEqual(isinstance(given, str), "a text" in errors)

    def test_what_a_worker_made_of_sys_exit_counts_as_sys_exit(self):
        error = TaskQuit("quit")
        error.__cause__ = SystemExit(5)
        self.assertEqual((5, ""), self.in_child(lambda: owner.leave_if_forked(os.getppid(), error)))

    def test_what_the_child_printed_is_not_lost(self):
        def leave():
            sys.stderr.write("printed")
            owner.leave_if_forked(os.getppid())

        self.assertEqual((0, "printed"), self.in_child(leave))

    def test_the_owner_goes_on(self):
        owner.leave_if_forked(os.getpid(), SystemExit(3))
        with self.assertRaises(SystemExit), owner.only_in_this_process():
            sys.exit(3)

    def test_a_block_of_one_process_is_left_by_that_process_only(self):
        def leave(error):
            with owner.only_in_this_process():
                child = os.fork()
                if child == 0:
                    if error:
                        raise error
                else:
                    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            os._exit(96)

        self.assertEqual((0, ""), self.in_child(lambda: leave(None)))
        self.assertEqual((4, ""), self.in_child(lambda: leave(SystemExit(4))))

    def test_nothing_of_the_parents_is_run_in_the_child(self):
        def leave():
            try:
                owner.leave_if_forked(os.getppid())
            finally:
                os._exit(95)

        self.assertEqual((0, ""), self.in_child(leave))


if __name__ == "__main__":
    unittest.main()
