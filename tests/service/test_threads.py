"""Calls in other threads: their answers come to the loop, and one that hangs holds up no other."""

import os
import select
import threading
import unittest

from sqstaskmaster._service.threads import Mailbox, Threads
from tests.support import DEADLINE_SECONDS, wait_until


class ThreadsTest(unittest.TestCase):
    def setUp(self):
        self.mailbox = Mailbox()
        self.addCleanup(self.mailbox.close)
        self.answers = []

    def threads(self, most=4):
        return Threads(self.mailbox, "test", most)

    def then(self, result, error):
        self.answers.append((result, error, threading.current_thread()))

    def deliver(self, number):
        """Turn the loop until so many answers are there."""
        while len(self.answers) < number:
            self.assertTrue(select.select([self.mailbox], [], [], DEADLINE_SECONDS)[0], "no answer came")
            self.mailbox.deliver()

    def test_the_answer_is_given_in_the_thread_of_the_loop(self):
        self.threads().call(lambda: threading.current_thread(), self.then)
        self.deliver(1)
        ((worked, error, answered),) = self.answers
        self.assertIsNone(error)
        self.assertIsNot(threading.current_thread(), worked)
        self.assertIs(threading.current_thread(), answered)

    def test_what_is_raised_is_an_answer_too_system_exit_included(self):
        threads = self.threads()

        def leave():
            raise SystemExit(3)

        threads.call(leave, self.then)
        self.deliver(1)
        self.assertIsInstance(self.answers[0][1], SystemExit)
        threads.call(lambda: "still here", self.then)
        self.deliver(2)
        self.assertEqual("still here", self.answers[1][0])

    def test_a_process_that_a_call_has_forked_ends_with_it(self):
        self.threads().call(lambda: os.fork(), self.then)  # here, so that Python warns of this line, and not of ours
        self.deliver(1)
        ((child, _, _),) = self.answers
        self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    def test_a_call_that_hangs_holds_up_no_other(self):
        threads, release = self.threads(), threading.Event()
        self.addCleanup(release.set)
        threads.call(lambda: release.wait(DEADLINE_SECONDS), self.then)
        for number in range(10):
            threads.call(lambda number=number: number, self.then)
        self.deliver(10)
        self.assertEqual(set(range(10)), {result for result, _, _ in self.answers})
        self.assertEqual(1, threads.unfinished)
        release.set()
        self.deliver(11)
        self.assertEqual(0, threads.unfinished)

    def test_there_are_never_more_than_were_allowed(self):
        threads, release, running = self.threads(most=2), threading.Event(), []
        self.addCleanup(release.set)

        def hang():
            running.append(1)
            release.wait(DEADLINE_SECONDS)

        for _ in range(5):
            threads.call(hang, self.then)
        release.set()
        self.deliver(5)
        self.assertLessEqual(threads._threads, 2)

    def test_one_thread_keeps_the_order(self):
        threads = self.threads(most=1)
        for number in range(100):
            threads.call(lambda number=number: number, self.then)
        self.deliver(100)
        self.assertEqual(list(range(100)), [result for result, _, _ in self.answers])

    def test_a_full_mailbox_loses_nothing(self):
        for number in range(70_000):  # more than a pipe holds
            self.mailbox.put(lambda number=number: self.answers.append(number))
        self.deliver(70_000)
        self.assertEqual(list(range(70_000)), self.answers)


if __name__ == "__main__":
    unittest.main()

    def test_a_call_without_an_answer_wakes_nobody_and_what_it_raises_is_logged(self):
        threads = self.threads(most=1)
        with self.assertLogs("sqstaskmaster.worker", "ERROR") as logs:
            threads.call(lambda: 1 / 0)
            threads.call(lambda: None, self.then)
            self.deliver(1)
        self.assertIn("ZeroDivisionError", logs.output[0])
        self.assertEqual([], select.select([self.mailbox], [], [], 0)[0])
        threads.wakes = True
        threads.call(lambda: None)
        self.assertTrue(select.select([self.mailbox], [], [], DEADLINE_SECONDS)[0], "the last one wakes the loop")
        self.assertEqual(0, threads.unfinished)

    def test_closed_its_threads_end_and_an_answer_that_comes_later_harms_nobody(self):
        mailbox, hang = Mailbox(), threading.Event()
        threads = Threads(mailbox, "closed", 2)
        threads.call(lambda: hang.wait(DEADLINE_SECONDS), self.then)
        threads.call(lambda: None, self.then)
        threads.close()
        mailbox.close()
        reading, writing = os.pipe()  # where the mailbox's ends were
        self.addCleanup(os.close, reading)
        hang.set()
        wait_until(lambda: "closed" not in [thread.name for thread in threading.enumerate()], "they have ended")
        os.close(writing)
        self.assertEqual(b"", os.read(reading, 1))
