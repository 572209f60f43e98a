"""What becomes of the values of a task on their way through JSON."""

import collections
import datetime
import decimal
import enum
import json
import math
import pathlib
import unittest
import uuid

import numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sqstaskmaster.errors import InvalidTask
from sqstaskmaster.local import LocalQueue
from sqstaskmaster.task_manager import TaskManager

LOGGER = "sqstaskmaster._sqs.values"


class Color(enum.Enum):
    RED = 1


class Named(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


Point = collections.namedtuple("Point", "x y")

# value, what arrives, and how the value comes back
HELD = (
    (None, None, lambda got: None),
    ((1, 2), [1, 2], tuple),
    (Point(1, 2), [1, 2], lambda got: Point(*got)),
    (Named.RED, "red", Named),
    (Level.HIGH, 3, Level),
    (numpy.int64(-5), -5, numpy.int64),
    (numpy.uint8(5), 5, numpy.uint8),
    (numpy.float32(0.5), 0.5, numpy.float32),
    (numpy.float64(0.1), 0.1, numpy.float64),
    (numpy.bool_(True), True, numpy.bool_),
    (numpy.str_("a"), "a", numpy.str_),
)

TEXT = (
    (decimal.Decimal("1.10"), "1.10", decimal.Decimal),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005", uuid.UUID),
    (pathlib.PurePosixPath("/a/b"), "/a/b", pathlib.PurePosixPath),
    (datetime.date(2024, 2, 29), "2024-02-29", datetime.date.fromisoformat),
    (
        datetime.datetime(2024, 2, 29, 1, 2, 3, 4, datetime.timezone.utc),
        "2024-02-29 01:02:03.000004+00:00",
        datetime.datetime.fromisoformat,
    ),
    (datetime.time(1, 2, 3), "01:02:03", datetime.time.fromisoformat),
    (Color.RED, "Color.RED", lambda got: Color[got.partition(".")[2]]),
    (numpy.datetime64("2024-02-29T01:02:03.123456789"), "2024-02-29T01:02:03.123456789", numpy.datetime64),
    (numpy.complex128(1 + 2j), "(1+2j)", lambda got: numpy.complex128(complex(got))),
    (numpy.longdouble("0.5"), "0.5", numpy.longdouble),
    ({5}, "{5}", lambda got: {5}),
    (b"x", "b'x'", lambda got: b"x"),
)


class ValuesTest(unittest.TestCase):
    def setUp(self):
        self.url = f"local://queue/{uuid.uuid4().hex}"
        self.addCleanup(LocalQueue.local_queues.pop, self.url, None)

    def manager(self, **options):
        return TaskManager(self.url, queue_constructor=LocalQueue, **options)

    def sent(self, manager, value):
        manager.submit("T", value=value)
        _, kwargs, _ = next(manager.task_generator(wait_time=0))
        return kwargs["value"]

    def test_what_json_holds_arrives_in_silence_and_comes_back(self):
        for strict in (False, True):
            manager = self.manager(strict=strict)
            for value, arrives, back in HELD:
                with self.subTest(value=value, strict=strict), self.assertNoLogs(LOGGER):
                    got = self.sent(manager, value)
                    self.assertEqual((arrives, type(arrives)), (got, type(got)))
                    self.assertEqual((value, type(value)), (back(got), type(value)))

    def test_what_json_cannot_hold_arrives_as_text_and_comes_back(self):
        for value, arrives, back in TEXT:
            with self.subTest(value=value), self.assertLogs(LOGGER, "WARNING"):
                got = self.sent(self.manager(), value)
                self.assertEqual(arrives, got)
                self.assertEqual(value, back(got))

    def test_an_array_arrives_as_lists_and_whole(self):
        for strict in (False, True):
            array = numpy.arange(6000).reshape(3, 2000)  # str(array) leaves out most of it
            got = self.sent(self.manager(strict=strict), array)
            self.assertTrue((array == numpy.array(got)).all())
        with self.assertLogs(LOGGER, "WARNING") as logs:
            self.assertEqual([1, "1.5"], self.sent(self.manager(), numpy.array([1, decimal.Decimal("1.5")], object)))
        self.assertIn("value[1] of task 'T' is a decimal.Decimal", logs.output[0])

    def test_the_first_of_a_type_is_logged_with_its_path_and_no_other(self):
        manager = self.manager()
        with self.assertLogs(LOGGER, "WARNING") as logs:
            manager.submit("T", a={"b": [0, {"c": decimal.Decimal(1)}]}, d=decimal.Decimal(2))
            manager.submit("T", a=decimal.Decimal(3))
            manager.submit_many([("T", {"when": datetime.date(2024, 1, 1), "price": decimal.Decimal(4)})] * 2)
        said = [record.getMessage() for record in logs.records]
        self.assertEqual(2, len(said))
        self.assertIn("a.b[1].c of task 'T' is a decimal.Decimal, which JSON cannot hold", said[0])
        self.assertIn("when of task 'T' is a datetime.date, which JSON cannot hold", said[1])
        self.assertIn("strict=True", said[0])
        self.assertEqual(("T", "a.b[1].c"), (logs.records[0].task, logs.records[0].path))

    def test_options_of_a_manager_do_not_log_again(self):
        manager = self.manager()
        with self.assertLogs(LOGGER, "WARNING") as logs:
            for number in range(3):
                manager.options(delay_seconds=number).submit("T", a={5})
        self.assertEqual(1, len(logs.records))

    def test_nan_and_infinity_are_logged_once_and_arrive(self):
        manager = self.manager()
        with self.assertLogs(LOGGER, "WARNING") as logs:
            self.assertTrue(math.isnan(self.sent(manager, math.nan)))
            self.assertEqual([math.inf, -math.inf], self.sent(manager, [math.inf, -math.inf]))
            self.assertEqual("{5}", self.sent(manager, {5}))
        self.assertEqual(2, len(logs.records))
        self.assertIn("value of task 'T' is nan", logs.output[0])

    def test_a_strict_manager_refuses_all_of_these_with_their_path_and_sends_nothing(self):
        manager = self.manager(strict=True)
        values = [value for value, _, _ in TEXT] + [math.nan, math.inf, {1: 2}, {None: 2}, numpy.array([math.nan])]
        for value in values:
            with self.subTest(value=value), self.assertRaisesRegex(InvalidTask, r"strict mode: a\.b\[1\](\[0\])? is "):
                manager.submit("T", a={"b": [0, value]})
        self.assertEqual(0, manager.attributes()["ApproximateNumberOfMessages"])

    def test_what_cannot_be_written_at_all_is_refused(self):
        class Sour:
            def __str__(self):
                raise LookupError("no text")

        cycle = {}
        cycle["self"] = [cycle]
        deep = []
        for _ in range(100_000):
            deep = [deep]
        for strict in (False, True):
            for value in (cycle, deep, {(1, 2): 3}, Sour(), [math.nan, cycle]):
                with self.subTest(type(value)), self.assertRaises(InvalidTask):
                    self.manager(strict=strict).submit("T", a=value)

    @settings(deadline=None, max_examples=50)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
        st.booleans(),
    )
    def test_every_json_value_arrives_as_it_was_and_as_json_writes_it(self, value, strict):
        manager = self.manager(strict=strict)
        manager.submit("T", value=value)
        _, kwargs, message = next(manager.task_generator(wait_time=0))
        self.assertEqual({"value": value}, kwargs)
        self.assertEqual(json.dumps({"task": "T", "kwargs": {"value": value}}), message.body)


if __name__ == "__main__":
    unittest.main()
