"""Whatever a program has set up for its log: the log calls of the package take nothing down, and say what there is."""

import contextlib
import io
import logging
import logging.config
import unittest

from sqstaskmaster import LocalMessage, LocalQueue, MessageHandler, ProcessMessageHandler, TaskManager, Worker
from sqstaskmaster._logging import get_logger, switch_on


class Plain(MessageHandler):
    def run(self):
        pass


class Isolated(ProcessMessageHandler):
    def run(self):
        pass


class Raises(logging.Handler):
    def emit(self, record):
        raise RuntimeError("of the handler")


class RaisesInFilter(logging.Handler):
    def __init__(self):
        super().__init__()
        self.addFilter(self)

    def filter(self, record):
        raise KeyError("of the filter")


def add_fields(*arguments, **named):
    """As the standard library's documentation has it."""
    record = logging.LogRecord(*arguments, **named)
    for name in ("task", "message_id", "action", "outcome", "elapsed", "sent"):
        setattr(record, name, "of the factory")
    return record


def raises(*arguments, **named):
    raise ValueError("of the factory")


class ProgramTest(unittest.TestCase):
    def setUp(self):
        self.records = []
        handler = logging.Handler()
        handler.emit = self.records.append
        self.use_handlers(handler)
        self.addCleanup(logging.setLogRecordFactory, logging.getLogRecordFactory())
        LocalQueue.local_queues.pop("logging", None)
        self.addCleanup(LocalQueue.local_queues.pop, "logging", None)
        self.manager = TaskManager("logging", queue_constructor=LocalQueue)

    def use_handlers(self, *handlers):
        logger = logging.getLogger("sqstaskmaster")
        for name, value in (("handlers", list(handlers)), ("propagate", False)):
            self.addCleanup(setattr, logger, name, getattr(logger, name))
            setattr(logger, name, value)
        self.addCleanup(logger.setLevel, logger.level)
        logger.setLevel("DEBUG")

    def check_all(self):
        """Each place where a line stands in the way of something: its outcome is what it is without one."""
        for kind in (Plain, Isolated):
            for error, outcome in ((ValueError("no"), "failed"), (None, "done")):
                with kind(LocalMessage('{"task": "T", "kwargs": {}}'), 30, 10, 60) as handler:
                    if error is not None:
                        raise error
                self.assertEqual(outcome, handler.outcome)
        self.manager.submit("T", value=object())  # lenient, with a warning
        self.manager.submit_many([("T", {"n": 1})])
        self.manager.queue.send_message(MessageBody="no task")
        self.assertEqual(2, len(list(self.manager.task_generator(0, burst=True))))
        for kind in (Plain, Isolated):
            worker = Worker(self.manager, {"T": kind}, wait_time=0)
            self.manager.queue.send_message(MessageBody="no task")
            self.manager.submit("T")
            self.manager.submit("Unknown")
            self.assertEqual(1, worker.run(burst=True)["done"])

    def test_fields_that_a_factory_puts_on_records_are_no_error_and_ours_are_ours(self):
        logging.setLogRecordFactory(add_fields)
        self.check_all()
        finished = [record for record in self.records if record.action == "finished"]
        self.assertEqual({"T", "Plain", "Isolated"}, {record.task for record in finished if record.outcome == "done"})
        failed = [record for record in self.records if record.action == "failed"]
        self.assertEqual({"failed"}, {record.outcome for record in failed})

    def test_a_factory_that_raises_costs_its_own_fields_only(self):
        logging.setLogRecordFactory(raises)
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            self.check_all()
        self.assertIn("ValueError: of the factory", stderr.getvalue())
        self.assertIn("finished", {getattr(record, "action", "") for record in self.records})

    def test_a_handler_and_a_filter_that_raise_are_told_of_on_standard_error(self):
        for kind, said in ((Raises, "RuntimeError: of the handler"), (RaisesInFilter, "KeyError: 'of the filter'")):
            with self.subTest(kind), contextlib.redirect_stderr(io.StringIO()) as stderr:
                self.use_handlers(kind())
                self.check_all()
                self.assertIn(said, stderr.getvalue())

    def test_a_line_names_the_place_that_logs_it(self):
        get_logger("sqstaskmaster.tests").warning("here")
        self.assertEqual(("test_logging.py", "test_a_line_names_the_place_that_logs_it"), self.place())

    def place(self):
        return self.records[-1].filename, self.records[-1].funcName

    def test_a_class_of_loggers_of_the_programs_own_stays(self):
        class Own(logging.Logger):
            def shout(self):
                return "of my own"

        found = logging.getLoggerClass()
        self.addCleanup(logging.setLoggerClass, found)
        logging.setLoggerClass(Own)
        logger = get_logger("sqstaskmaster.tests.own")
        self.assertEqual("of my own", logger.shout())
        logging.setLogRecordFactory(raises)
        with contextlib.redirect_stderr(io.StringIO()):
            logger.warning("here")

    def test_what_dictconfig_has_switched_off_is_on_again(self):
        known = logging.getLogger("sqstaskmaster.worker")
        self.addCleanup(setattr, known, "disabled", False)
        known.disabled = True
        switch_on()
        self.assertFalse(known.disabled)


if __name__ == "__main__":
    unittest.main()
