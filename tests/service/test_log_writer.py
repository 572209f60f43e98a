"""The thread that writes a worker's lines of the log."""

import logging
import os
import threading
import unittest
from unittest import mock

from sqstaskmaster import TaskFilter
from sqstaskmaster._claim import current
from sqstaskmaster._logging import get_logger
from sqstaskmaster._service import log_writer
from sqstaskmaster._service.log_writer import LogWriter
from tests.support import DEADLINE_SECONDS

logger = get_logger("sqstaskmaster.tests.writer")


class Handler(logging.Handler):
    """Its first record stalls until `released`."""

    def __init__(self):
        super().__init__()
        self.records, self.stalls, self.released = [], threading.Event(), threading.Event()

    def emit(self, record):
        self.stalls.set()
        self.released.wait(DEADLINE_SECONDS)
        self.records.append((record.getMessage(), getattr(record, "task", None)))


class LogWriterTest(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.NOTSET)
        self.handler = Handler()
        self.handler.addFilter(TaskFilter())
        package = logging.getLogger("sqstaskmaster")
        package.addHandler(self.handler)
        self.addCleanup(package.removeHandler, self.handler)
        self.addCleanup(self.handler.released.set)

    def stalled(self, writer):
        """The first line is being written."""
        writer.start()
        logger.warning("first")
        self.assertTrue(self.handler.stalls.wait(DEADLINE_SECONDS))

    def texts(self):
        return [text for text, _ in self.handler.records]

    def test_a_handler_that_stalls_holds_up_nobody_and_the_order_is_kept(self):
        with LogWriter() as writer:
            self.stalled(writer)
            logger.warning("second")
            logger.warning("third")
            self.handler.released.set()
        self.assertEqual(["first", "second", "third"], self.texts())
        logger.warning("after the run")
        self.assertEqual("after the run", self.texts()[-1], "by the logger itself")

    def test_what_is_too_much_to_keep_is_lost_and_counted(self):
        with mock.patch.object(log_writer, "_MOST_LINES", 2), LogWriter() as writer:
            self.stalled(writer)
            for number in range(5):
                logger.warning("%d", number)
            self.handler.released.set()
        self.assertEqual({"first", "0", "1", "3 lines are missing here: nobody read the log"}, set(self.texts()))

    def test_a_line_has_the_task_that_ran_when_it_was_made(self):
        tasks = [current.CurrentTask(name, None, float, dict, bool) for name in ("Early", "Late")]
        with LogWriter() as writer:
            self.stalled(writer)
            with current.running(tasks[0]):
                logger.warning("while it ran")
            logger.warning("between them")
            with current.running(tasks[1]):
                self.handler.released.set()
                writer.__exit__(None, None, None)  # all is written before the next has ended
        self.assertEqual([("first", None), ("while it ran", "Early"), ("between them", None)], self.handler.records)

    def test_a_handler_that_raises_takes_no_other_line_with_it(self):
        self.handler.released.set()
        with LogWriter() as writer, mock.patch.object(self.handler, "emit", side_effect=[KeyError, None]) as emit:
            writer.start()
            with mock.patch("sys.stderr"):
                logger.warning("one")
                logger.warning("two")
                writer.__exit__(None, None, None)
        self.assertEqual(2, emit.call_count)

    def test_a_process_that_is_forked_meanwhile_writes_its_lines_itself(self):
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.handler.released.set()
        with LogWriter() as writer:
            writer.start()
            child = os.fork()
            if not child:
                try:
                    logger.warning("in the child")
                    os.write(writing, self.texts()[-1].encode())
                finally:
                    os._exit(0)
            os.close(writing)
            os.waitpid(child, 0)
        self.assertEqual(b"in the child", os.read(reading, 100))


if __name__ == "__main__":
    unittest.main()
