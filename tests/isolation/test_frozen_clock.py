"""A test may stop time.monotonic (freezegun, a patch): no wait ends by that clock alone."""

import threading
import unittest
from unittest import mock

from sqstaskmaster import LocalMessage, LocalQueue, ProcessMessageHandler, TaskManager
from sqstaskmaster._isolation import child as isolation
from sqstaskmaster._isolation.template import Template
from sqstaskmaster._sending import sending
from sqstaskmaster._signals.bounded import looks
from tests.isolation.test_task import Case


class Isolated(ProcessMessageHandler):
    def run(self):
        return "done"


class FrozenClockTest(Case):
    def setUp(self):
        super().setUp()
        # Whatever is wrong with the code under test: `wait_until` needs the real one.
        patched = mock.patch("time.monotonic", return_value=5000.0)
        patched.start()
        self.addCleanup(patched.stop)

    def test_a_loop_that_looks_ends(self):
        self.assertEqual(11, sum(1 for _ in looks(0.01, 0.001)))

    def test_a_wait_for_a_task_ends(self):
        child = isolation.Child(lambda channel: threading.Event().wait(60), name="T", term_grace=0.1)
        self.addCleanup(child.close)
        child.start()
        self.assertFalse(child.wait(0.3))
        child.stop()
        self.assertTrue(child.wait(20))

    def test_a_task_runs_to_its_end(self):
        with Isolated(LocalMessage('{"task": "T", "kwargs": {}}'), 30, 10, 60) as handler:
            self.assertEqual("done", handler.run())
        self.assertEqual("done", handler.outcome)

    def test_the_look_for_threads_before_a_fork_ends(self):
        ended = threading.Event()
        thread = threading.Thread(target=ended.wait)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(ended.set)
        with mock.patch.object(isolation, "_warned_of_threads", False):
            isolation.warn_of_threads()

    def test_a_template_that_hangs_is_ended(self):
        with mock.patch("sqstaskmaster._isolation.template._END_SECONDS", 0.01):
            template = Template(lambda order, channel: None)
            with mock.patch("sqstaskmaster._isolation.template._be_template", lambda *_: threading.Event().wait(60)):
                template.start()
            template.close()
        self.assertIsNone(template.pid)

    def test_the_wait_for_requests_after_an_interrupt_ends(self):
        class Hangs(LocalQueue):
            def send_messages(self, Entries):
                begun.set()
                threading.Event().wait(60)

        def tasks():
            yield "T", {}
            begun.wait(60)
            raise KeyboardInterrupt

        begun = threading.Event()
        manager = TaskManager("hangs", queue_constructor=Hangs)
        with (
            mock.patch.object(sending, "_INTERRUPT_SECONDS", 0.2),
            mock.patch.object(sending, "_LINGER_SECONDS", 0.01),
            self.assertRaises(KeyboardInterrupt),
        ):
            manager.submit_many(tasks())


if __name__ == "__main__":
    unittest.main()
