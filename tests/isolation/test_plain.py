import collections
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import unittest
import uuid

from sqstaskmaster._isolation import plain

Point = collections.namedtuple("Point", "x y")


class Level(enum.IntEnum):
    HIGH = 3


class Colour(enum.Enum):
    RED = 1


class Rude:
    def __repr__(self):
        raise RuntimeError("no")


class PlainTest(unittest.TestCase):
    def test_plain_data_arrives_as_it_was(self):
        for value in (
            *(None, True, 1, -(10**100), 1.5, math.inf, "x", "\ud800", "Ж", b"\x00\xff", bytearray(b"x"), 1j),
            *([1, [2]], (1, (2,)), {1, 2}, frozenset([(1,)]), {"a": {"$": 1}}, {1: 2, (1, 2): {3}}, {}),
            *(decimal.Decimal("1.50"), fractions.Fraction(1, 3), uuid.UUID(int=5), pathlib.Path("/x")),
            *(datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc), datetime.date(2026, 1, 2)),
            *(datetime.time(1, 2, 3), datetime.timedelta(-1, 2, 3)),
        ):
            with self.subTest(value=value):
                read = plain.load(plain.dump(value))
                self.assertEqual(value, read)
                self.assertIs(type(value), type(read))

    def test_of_a_subclass_the_plain_part_arrives(self):
        self.assertEqual(
            [(1, 2), 3, {"a": 1}], plain.load(plain.dump([Point(1, 2), Level.HIGH, collections.Counter("a")]))
        )

    def test_what_is_not_plain_is_refused_or_said_in_words(self):
        for value, words in ((Colour.RED, "<Colour.RED: 1>"), (10**5000, "<int of 16,610 bits>")):
            with self.subTest(words):
                with self.assertRaises(plain.NotPlain):
                    plain.dump({"a": value})
                self.assertEqual({"a": words}, plain.load(plain.spoken({"a": value})))

    def test_a_repr_that_fails_is_told_of(self):
        with self.assertRaises(plain.NotPlain):
            plain.dump(Rude())
        self.assertRegex(plain.load(plain.spoken(Rude())), "<Rude instance at 0x")

    def test_what_is_too_much_is_said_in_words_as_a_whole(self):
        deep, wide = [], []
        for _ in range(100_000):
            deep = [deep]
        wide += [wide, wide]
        shared = []
        for _ in range(60):
            shared = [shared, shared]  # 2 ** 60 lists, for whoever counts them
        for value in ("x" * 2_000_000, ["x"] * 1_000_000, b"x" * 1_000_000, "Ж" * 600_000, deep, wide, shared):
            with self.assertRaises(plain.NotPlain):
                plain.dump(value)
            read = plain.load(plain.spoken(value))
            self.assertIsInstance(read, str)
            self.assertLess(len(read), 2 * plain.MAX_TEXT)

    def test_what_could_not_be_read_again_is_said_in_words_as_a_whole(self):
        class Hashable(dict):
            def __hash__(self):
                return 1

        for value in (fractions.Fraction(10**5000, 3), {Hashable()}, {Hashable(): 1}):
            with self.subTest(type(value)):
                with self.assertRaises(plain.NotPlain):
                    plain.dump(value)
                self.assertIsInstance(plain.load(plain.spoken(value)), str)

    def test_bytes_that_are_no_plain_data_are_a_value_error(self):
        for content in (b"", b"{", b'{"$": 1}', b'{"$": ["?", 1]}', b'{"$": ["set", [[]]]}', b"[" * 500_000, b"\xff"):
            with self.subTest(content[:20]), self.assertRaises(ValueError):
                plain.load(content)
        with self.assertRaises(ValueError):
            plain.load(b" " * (plain.MAX_BYTES + 1))


if __name__ == "__main__":
    unittest.main()
