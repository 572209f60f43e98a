"""What is said of one message: the calls that tests out there compare, and the facts on their records all the same."""

import logging
import threading
import unittest
from unittest import mock

from sqstaskmaster._claim import forwarding
from sqstaskmaster._claim.report import FactsFilter, Report, attributes_of, printable
from sqstaskmaster.errors import ShutdownRequested
from tests.support.handling import ATTRIBUTES, BODY, Clock, FakeMessage

logger = logging.getLogger("sqstaskmaster.tests.report")
logger.addFilter(FactsFilter())


class ReportTest(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.message = FakeMessage()
        self.notified = []

    def report(self, task="Train", message=None, **options):
        def notify(error, context):
            self.notified.append((error, context))

        return Report(message or self.message, task, notify, lambda: logger, self.clock, **options)

    def test_a_failure_line_has_the_facts_though_its_call_carries_none(self):
        report = self.report()
        self.clock.now += 1.5
        report.ended_at, report.outcome, report.comes_back_in, report.limit = self.clock.now, "timed out", 19.96, 60
        error = ValueError("x")
        with self.assertLogs(logger) as logs, mock.patch.object(logger, "exception", wraps=logger.exception) as called:
            try:
                raise error
            except ValueError:
                report.failed(error)
        called.assert_called_once_with("Failed for message: %s", self.message)
        (record,) = logs.records
        self.assertIs(error, record.exc_info[1])
        self.assertEqual(
            ("failed", "Train", self.message.message_id, 3, 1.5, "timed out", 20.0, 60),
            (
                record.action,
                record.task,
                record.message_id,
                record.receive_count,
                record.elapsed,
                record.outcome,
                record.comes_back_in,
                record.limit,
            ),
        )
        self.assertEqual([(error, {"body": BODY, **ATTRIBUTES})], self.notified)

    def test_the_facts_of_one_line_are_not_on_the_next_nor_on_those_of_other_threads(self):
        def other():
            logger.warning("of another thread")

        def notify_and_log(error, context):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join(10)

        with self.assertLogs(logger) as logs:
            Report(self.message, "T", notify_and_log, lambda: logger, self.clock).failed(ValueError())
            logger.warning("afterwards")
        self.assertEqual([False, True, False], [hasattr(record, "task") for record in logs.records])

    def test_an_exception_that_is_not_being_handled_is_logged_with_its_own_traceback_and_context(self):
        error = ValueError("swallowed by the task")
        with self.assertLogs(logger) as logs:
            try:
                raise KeyError("something else")
            except KeyError:
                self.report().failed(error)
        self.assertIs(error, logs.records[0].exc_info[1])
        self.assertIsNone(error.__context__)
        self.assertNotIn("something else", logs.output[0])

    def test_what_is_no_exception_is_a_failure_like_any_other(self):
        given = mock.Mock()
        with self.assertLogs(logger) as logs:
            self.report().failed(given)
        self.assertEqual((1, [given]), (len(logs.records), [error for error, _ in self.notified]))

    def test_a_task_interrupted_by_its_worker_is_one_warning_without_a_stack(self):
        with self.assertLogs(logger) as logs:
            self.report().failed(ShutdownRequested("The worker is stopping"))
        (record,) = logs.records
        self.assertEqual(("WARNING", None, "interrupted"), (record.levelname, record.exc_info, record.action))
        self.assertEqual(1, len(logs.output[0].splitlines()))
        self.assertEqual(1, len(self.notified))

    def test_any_other_interruption_is_logged_with_its_traceback(self):
        for error in (KeyboardInterrupt(), SystemExit(1)):
            with self.assertLogs(logger) as logs:
                self.report().failed(error)
            self.assertEqual(("ERROR", error), (logs.records[0].levelname, logs.records[0].exc_info[1]))

    def test_the_finished_line_has_more_where_more_is_known_as_fields_and_in_words(self):
        message = FakeMessage(attributes={})
        report = self.report(message=message)
        report.outcome = "done"
        with self.assertLogs(logger) as logs:
            report.finished()
            report.used = {"cpu_seconds": 2.0, "peak_memory": 3 * 1024**2}
            message.message_attributes = {forwarding.ATTRIBUTE: {"StringValue": '{"continuation": 4}'}}
            report.finished()
        plain, more = logs.records
        self.assertRegex(plain.getMessage(), r"^Task Train done: message id-\d+, receive \?, queued \? s, ran 0.000 s$")
        self.assertTrue(
            more.getMessage().endswith("ran 0.000 s, CPU 2.000 s, peak memory 3.0 MiB, continuation 4"), more
        )
        self.assertEqual((2.0, 3 * 1024**2, 4), (more.cpu_seconds, more.peak_memory, more.continuation))

    def test_what_came_from_a_message_cannot_break_a_line_of_the_log(self):
        self.message.message_id = "id\nERROR forged"
        report = self.report(task="T\r\n2026 ERROR forged\x1b[31m")
        report.outcome = "done"
        with self.assertLogs(logger) as logs:
            report.finished()
            report.failed(ShutdownRequested())
        for record in logs.records:
            self.assertTrue(record.getMessage().isprintable(), record.getMessage())
        self.assertEqual("T\r\n2026 ERROR forged\x1b[31m", logs.records[0].task)
        self.assertEqual(["a b", "ü", r"a\nb", r"\x1b"], [*map(printable, ("a b", "ü", "a\nb", "\x1b"))])

    def test_under_a_worker_the_context_also_says_whose_message_it_is(self):
        report = self.report(queue_url="https://queue")
        report.outcome = "failed"
        report.stack = "the stack"
        report.notify(ValueError())
        own = {"task": "Train", "message_id": self.message.message_id, "receive_count": 3, "outcome": "failed"}
        expected = {"body": BODY, **ATTRIBUTES, **own, "queue": "https://queue", "stack": "the stack"}
        self.assertEqual(expected, self.notified[0][1])

    def test_a_notify_that_raises_is_logged_and_goes_no_further(self):
        report = Report(self.message, "T", mock.Mock(side_effect=ZeroDivisionError), lambda: logger, self.clock)
        with self.assertLogs(logger) as logs:
            report.not_deleted(ValueError())
        self.assertEqual(["notify_failed", "delete_failed"], [record.action for record in logs.records])

    def test_attributes_that_are_no_mapping_are_none(self):
        for attributes in (None, mock.Mock(), [], "text"):
            self.assertEqual({}, attributes_of(FakeMessage(attributes=attributes)))


if __name__ == "__main__":
    unittest.main()
