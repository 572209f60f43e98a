import io
import json
import logging
import tempfile
import unittest
from unittest import mock

from sqstaskmaster._cli import logs
from sqstaskmaster._cli.stderr import Stderr


class TestFormatters(unittest.TestCase):
    def format(self, formatter, *arguments, **options):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger = logging.Logger("some.logger")
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
        self.assertRegex(line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR \d+ Task Train\n$")


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
