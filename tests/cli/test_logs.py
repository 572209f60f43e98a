import asyncio
import io
import json
import logging
import re
import sys
import tempfile
import time
import unittest
from unittest import mock

from sqstaskmaster import (
    CurrentTask,
    LocalMessage,
    LocalQueue,
    MessageHandler,
    ProcessMessageHandler,
    TaskManager,
    Worker,
)
from sqstaskmaster._claim import current, words
from sqstaskmaster._cli import logs
from sqstaskmaster._cli.stderr import Stderr


class TestTasksRecords(unittest.TestCase):
    def test_what_a_task_logs_carries_its_name_and_message_id(self):
        written = []
        root = logging.RootLogger(logging.NOTSET)
        with (
            mock.patch("logging.getLogger", lambda name=None: root),
            mock.patch("sqstaskmaster._cli.logs.STDERR", mock.Mock(write=written.append)),
        ):
            logs.configure("INFO", as_json=True)
        with (
            mock.patch("sqstaskmaster._cli.logs.STDERR", mock.Mock(write=written.append)),
            current.running(CurrentTask("Train", LocalMessage("{}", {}), float, print, bool)) as task,
        ):
            root.warning("half way")
        found = json.loads(written[0])
        self.assertEqual(("Train", task.message_id), (found["task"], found["message_id"]))


class TestFormatters(unittest.TestCase):
    def format(self, formatter, *arguments, logger="some.logger", **options):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger = logging.Logger(logger)
        logger.addHandler(handler)
        logger.error(*arguments, **options)
        return stream.getvalue()

    def test_json_is_one_object_a_line_with_the_fields_of_extra(self):
        line = self.format(
            logs.JsonFormatter(),
            "Task %s\nfinished",
            "Train",
            extra={"action": "finished", "elapsed": 1.5, "receive_count": None, "what": object},
        )
        self.assertEqual(1, line.count("\n"))
        found = json.loads(line)
        self.assertRegex(found.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertIsInstance(found.pop("process"), int)
        self.assertEqual(
            {
                "level": "ERROR",
                "logger": "some.logger",
                "message": "Task Train\nfinished",
                "action": "finished",
                "elapsed": 1.5,
                "what": "<class 'object'>",
            },
            found,
        )

    def test_json_keeps_the_traceback_in_its_line(self):
        try:
            raise ValueError("no such model")
        except ValueError:
            line = self.format(logs.JsonFormatter(), "failed", exc_info=True)
        self.assertEqual(1, line.count("\n"))
        self.assertIn("ValueError: no such model", json.loads(line)["exception"])

    def test_an_extra_field_never_replaces_one_of_the_record(self):
        line = self.format(logs.JsonFormatter(), "failed", extra={"time": "noon", "level": "low"})
        found = json.loads(line)
        self.assertEqual("ERROR", found["level"])
        self.assertNotEqual("noon", found["time"])

    def test_a_plain_line_says_when_how_bad_who_and_what(self):
        line = self.format(logs.PlainFormatter(), "Task %s", "Train")
        self.assertRegex(line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}Z ERROR \d+ some\.logger: Task Train\n$")

    def test_the_time_is_utc_whatever_the_time_zone_is(self):
        record = logging.makeLogRecord({"name": "a", "created": 0.0, "msecs": 7.0})
        with mock.patch("time.localtime", lambda _: time.gmtime(3600)):
            self.assertTrue(logs.PlainFormatter().format(record).startswith("1970-01-01 00:00:00,007Z "))

    def test_a_line_end_of_a_message_begins_no_line_of_the_log(self):
        forged = "Train\n2026-01-31 12:00:00,123 INFO 1 sqstaskmaster: forged \x1b[2J"
        ours = self.format(logs.PlainFormatter(), "Task %s", forged, logger="sqstaskmaster.worker")
        self.assertEqual(1, ours.count("\n"))
        self.assertIn("Train\\n2026", ours)
        theirs = self.format(logs.PlainFormatter(), "Task %s", forged)
        self.assertIn("Train\n    2026", theirs)
        for line in (ours, theirs):
            self.assertNotIn("\x1b", line)
            self.assertIn("\\x1b[2J", line)

    def test_a_line_end_in_the_text_of_an_exception_begins_no_line_of_the_log(self):
        try:
            raise ValueError("no\n2026-01-31 forged")
        except ValueError:
            lines = self.format(logs.PlainFormatter(), "failed", exc_info=True).splitlines()
        self.assertEqual(["    "] * len(lines[1:]), [line[:4] for line in lines[1:]])

    def test_a_message_is_shown_by_its_id_and_not_by_its_receipt_handle(self):
        message = mock.Mock(message_id="abc", receipt_handle="secret")
        message.__str__ = lambda _: "sqs.Message(receipt_handle='secret')"
        self.assertIn("given back: message abc\n", self.format(logs.PlainFormatter(), "given back: %s", message))
        found = json.loads(self.format(logs.JsonFormatter(), "refused: %s", message))
        self.assertEqual(("refused: message abc", "abc"), (found["message"], found["message_id"]))

    def test_arguments_may_be_a_mapping(self):
        self.assertIn("Task Train", self.format(logs.PlainFormatter(), "Task %(task)s", {"task": "Train"}))


class TestFailures(unittest.TestCase):
    """The lines of tasks that failed, as the command line writes them."""

    def setUp(self):
        self.records = []
        handler = logging.Handler()
        handler.emit = self.records.append
        logger = logging.getLogger("sqstaskmaster")
        for name, value in (("handlers", [handler]), ("propagate", False)):
            self.addCleanup(setattr, logger, name, getattr(logger, name))
            setattr(logger, name, value)
        self.addCleanup(logger.setLevel, logger.level)
        logger.setLevel("INFO")

    def run_task(self, handler, **timeouts):
        LocalQueue.local_queues.pop("failures", None)
        manager = TaskManager("failures", queue_constructor=LocalQueue)
        manager.submit("Train")
        Worker(manager, {"Train": handler}, wait_time=0, **timeouts).run(burst=True)
        [record] = [record for record in self.records if record.levelno >= logging.ERROR]
        return logs.PlainFormatter().format(record), json.loads(logs.JsonFormatter().format(record))

    def assert_users_own(self, text):
        self.assertIn("test_logs.py", text)
        self.assertNotIn(words._OURS, text)

    def test_a_failure_is_a_sentence_with_its_facts_and_the_users_own_traceback(self):
        for base in (MessageHandler, ProcessMessageHandler):
            with self.subTest(base.__name__):
                self.records.clear()
                plain, found = self.run_task(type("Train", (base,), {"run": raise_value_error}))
                self.assertRegex(
                    plain, r"Task \S*Train failed: ValueError: no such model; message local-\d+ \(receive 1\)"
                )
                self.assertIn("comes back", plain)
                self.assert_users_own(plain)
                self.assertEqual(1, found["exception"].count("ValueError: no such model"), found["exception"])
                self.assertEqual(("failed", 1), (found["outcome"], found["receive_count"]))

    @unittest.skipUnless(sys.version_info >= (3, 11), "groups came with Python 3.11")
    def test_a_failed_group_is_shown_with_the_errors_in_it_and_no_frames_of_ours(self):
        for base in (MessageHandler, ProcessMessageHandler):
            with self.subTest(base.__name__):
                self.records.clear()
                plain, _ = self.run_task(type("Train", (base,), {"run": raise_group}))
                self.assertIn("| ValueError: no such model", plain)
                self.assertIn("in raise_value_error", plain)
                self.assert_users_own(plain)

    def test_a_timeout_names_the_task_and_the_limit_and_shows_where_it_was(self):
        for base in (MessageHandler, ProcessMessageHandler):
            with self.subTest(base.__name__):
                self.records.clear()
                handler = type("Train", (base,), {"run": never_end})
                plain, _ = self.run_task(handler, hard_timeout=2)  # time enough to begin, on a machine that is busy
                said = r"Task \S*Train timed out: stopped at its limit, gone after (\d+\.\d) s; message local-"
                self.assertRegex(plain, said)
                self.assertGreaterEqual(float(re.search(said, plain)[1]), 2)
                self.assertIn("in never_end", plain)
                self.assert_users_own(plain)

    def test_a_task_that_exits_is_one_sentence_and_no_frames_of_ours(self):
        plain, _ = self.run_task(type("Train", (ProcessMessageHandler,), {"run": lambda self: sys.exit(3)}))
        self.assertIn("exited with code 3", plain)
        self.assertEqual(1, plain.count("exited with code 3"))
        self.assertNotIn("\n", plain)


def raise_value_error(handler):
    raise ValueError("no such model")


def raise_group(handler):
    async def fail():
        raise_value_error(handler)

    async def run():
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    asyncio.run(run())


def never_end(handler):
    while True:
        time.sleep(0.01)


class TestConfigure(unittest.TestCase):
    def setUp(self):
        root = logging.getLogger()
        self.addCleanup(root.setLevel, root.level)
        self.addCleanup(setattr, root, "handlers", root.handlers[:])
        for name in logs._TALKATIVE:
            self.addCleanup(logging.getLogger(name).setLevel, logging.getLogger(name).level)
        self.stderr = tempfile.TemporaryFile("w+")
        self.addCleanup(self.stderr.close)
        patched = mock.patch.object(logs, "STDERR", Stderr(self.stderr.fileno()))
        patched.start()
        self.addCleanup(patched.stop)

    def written(self):
        self.stderr.seek(0)
        return self.stderr.read()

    def test_records_go_to_standard_error_from_the_level_up(self):
        logs.configure("INFO", as_json=True)
        logging.getLogger("sqstaskmaster").debug("hidden")
        logging.getLogger("sqstaskmaster").info("shown")
        self.assertEqual("shown", json.loads(self.written())["message"])

    def test_at_debug_the_libraries_of_aws_stay_quiet_because_they_write_message_bodies(self):
        logs.configure("DEBUG", as_json=False)
        logging.getLogger("botocore.endpoint").debug("the whole request")
        self.assertEqual("", self.written())

    def test_a_record_whose_arguments_do_not_fit_says_where_it_is_made(self):
        logs.configure("INFO", as_json=False)
        logging.getLogger("sqstaskmaster").info("%d tasks", "three")
        self.assertIn("Logging failed for '%d tasks' in", self.written())
        self.assertIn("TypeError", self.written())
