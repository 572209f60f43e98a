"""The decoder and encoder on their own, and under fuzz: whatever a body is, it is a task or it is one error."""

import decimal
import json
import logging
import unittest
import uuid

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sqstaskmaster._sqs.messages import decode, encode
from sqstaskmaster.errors import InvalidTask, MalformedMessage
from sqstaskmaster.local import LocalMessage, LocalQueue
from sqstaskmaster.task_manager import TaskManager

# No deadline and no complaint of slowness: the machine may be busy. No database: the tests leave no files.
fuzz = settings(deadline=None, database=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

# What hypothesis finds hard to think of.
NASTY = (
    "",
    " ",
    "\ufeff{}",
    "\ud800",
    "NaN",
    "-Infinity",
    "1e999",
    "[1]",
    '"x"',
    "5",
    "null",
    "true",
    "{}",
    "{",
    '{"task": 5, "kwargs": {}}',
    '{"task": "", "kwargs": {}}',
    '{"task": null, "kwargs": {}}',
    '{"task": "T"}',
    '{"kwargs": {}}',
    '{"task": "T", "kwargs": null}',
    '{"task": "T", "kwargs": []}',
    '{"task": "T", "kwargs": "x"}',
    '{"task": "T", "kwargs": {}} x',
    "1" * 5_000,
    '{"task": "T", "kwargs": {"x": ' + "9" * 5_000 + "}}",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"task": "T", "kwargs": ' + "[" * 100_000,
    b"",
    b"\xff",
    b"\x00",
    b"[1]",
    b"\xef\xbb\xbf[]",
    bytearray(b"\xff"),
    memoryview(b"{}"),
    None,
    5,
    1.5,
    True,
    [],
    {},
    {"task": "T", "kwargs": {}},
    object(),
    lambda: None,
)

END = "the end of the queue"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
# Bodies that are nearly right are more interesting than noise.
nearly = st.fixed_dictionaries(
    {},
    optional={"task": json_values, "kwargs": json_values | st.dictionaries(st.text(), json_values), "x": json_values},
).map(json.dumps)
cut = st.tuples(nearly, st.integers(0, 60)).map(lambda pair: pair[0][: -pair[1] or None])
texts = st.text() | st.text(st.characters(categories=["Cs", "Cc", "Ll"])) | json_values.map(json.dumps) | nearly | cut
# UTF-8 and UTF-16 are both JSON to Python.
bodies = texts | st.binary() | nearly.map(str.encode) | nearly.map(lambda body: body.encode("utf-16")) | json_values


class Fake:
    """A queue that holds whatever it is given, as no SQS would."""

    def __init__(self, bodies):
        self.messages = [LocalMessage(body, {"ApproximateReceiveCount": "1"}) for body in bodies]

    def receive_messages(self, **kwargs):
        return [self.messages.pop(0)]

    def send_message(self, **kwargs):
        raise NotImplementedError

    load = purge = send_message


class MessagesTest(unittest.TestCase):
    def test_a_task_comes_back_as_it_was_sent(self):
        self.assertEqual(("T", {"a": [1, {"b": None}]}), decode(encode("T", {"a": [1, {"b": None}]})))

    def test_the_body_has_task_then_kwargs_with_default_separators_in_ascii(self):
        self.assertEqual('{"task": "T", "kwargs": {"b": 1, "a": "\\u00e9"}}', encode("T", {"b": 1, "a": "é"}))

    def test_what_json_cannot_hold_becomes_its_text(self):
        unlike = uuid.UUID(int=5)
        _, kwargs = decode(encode("T", {"price": decimal.Decimal("1.50"), "deep": [{"id": unlike}]}))
        self.assertEqual({"price": "1.50", "deep": [{"id": str(unlike)}]}, kwargs)

    def test_a_task_without_a_name_is_refused(self):
        for task in ("", None, 5, b"T", ["T"], True):
            with self.subTest(task=task), self.assertRaisesRegex(InvalidTask, "non-empty string"):
                encode(task, {})

    def test_arguments_that_cannot_be_written_are_refused_by_one_error_that_names_the_task(self):
        class Mute:
            def __str__(self):
                raise KeyError("no words")

        cycle = []
        cycle.append(cycle)
        deep = []
        for _ in range(100_000):
            deep = [deep]
        for value in (cycle, deep, {(1, 2): "key"}, Mute(), [Mute()]):
            with self.assertRaisesRegex(InvalidTask, "arguments of task 'Name'"):
                encode("Name", {"value": value})

    def test_every_other_body_is_one_error_that_does_not_tell_the_body(self):
        for body in NASTY:
            with self.subTest(body=str(body)[:40]), self.assertRaises(MalformedMessage) as refusal:
                decode(body)
            self.assertLess(len(str(refusal.exception)), 200)
        with self.assertRaises(MalformedMessage) as refusal:
            decode('{"task": {"password": "secret"}, "kwargs": {}}')
        self.assertNotIn("secret", str(refusal.exception))

    def test_fields_that_are_not_ours_are_left_aside(self):
        self.assertEqual(("T", {}), decode('{"task": "T", "version": 2, "kwargs": {}}'))


class FuzzTest(unittest.TestCase):
    """Defect 9: no body of any kind may raise out of the generator."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    @fuzz
    @given(st.text(min_size=1), st.dictionaries(st.text(), json_values))
    def test_everything_json_can_hold_comes_back(self, task, kwargs):
        self.assertEqual((task, kwargs), decode(encode(task, kwargs)))

    @fuzz
    @given(bodies)
    def test_a_body_is_a_task_or_malformed_and_nothing_else(self, body):
        try:
            task, kwargs = decode(body)
        except MalformedMessage:
            return
        self.assertIsInstance(task, str)
        self.assertTrue(task)
        self.assertIsInstance(kwargs, dict)
        self.assertTrue(all(isinstance(key, str) for key in kwargs))

    def run_to_end(self, manager):
        for task, _, _ in manager.task_generator(wait_time=0):
            if task == END:
                return

    @fuzz
    @example(list(NASTY))
    @given(st.lists(bodies, max_size=8))
    def test_the_generator_goes_on_whatever_a_queue_holds(self, bodies):
        fake = Fake([*bodies, encode(END, {})])
        told = []
        self.run_to_end(TaskManager("fake", lambda exception, context: told.append(context["body"]), lambda url: fake))
        self.assertEqual([id(body) for body in bodies if not is_task(body)], [id(body) for body in told])

    @fuzz
    @example([body for body in NASTY if isinstance(body, str)])
    @given(st.lists(texts, max_size=8))
    def test_the_generator_goes_on_whatever_a_local_queue_was_sent(self, bodies):
        LocalQueue.local_queues.pop("fuzz", None)
        told = []
        manager = TaskManager("fuzz", lambda exception, context: told.append(context["body"]), LocalQueue)
        for body in bodies:
            manager.queue.send_message(MessageBody=body)
        manager.submit(END)
        self.run_to_end(manager)
        self.assertEqual([body for body in bodies if not is_task(body)], told)


def is_task(body):
    try:
        decode(body)
    except MalformedMessage:
        return False
    return True


if __name__ == "__main__":
    unittest.main()
