import unittest

from botocore.exceptions import ClientError

from sqstaskmaster._isolation import carried
from sqstaskmaster.errors import RemoteError

constructed = []


class NeedsTwo(Exception):
    def __init__(self, one, two):
        constructed.append(self)
        super().__init__(f"{one} and {two}")
        self.one = one


class Hooks(Exception):
    def __setattr__(self, name, value):
        raise AssertionError("run in the worker")


class MakesItself(Exception):
    def __new__(cls, *args):
        constructed.append(cls)
        return super().__new__(cls, *args)


class WithSlots(Exception):
    __slots__ = ("slot",)


class Metaclassed(Exception, metaclass=type("Meta", (type,), {})):
    pass


class GoesOn(BaseException):
    crosses_processes = True


class HoldsAnObject(Exception):
    def __init__(self):
        super().__init__("held")
        self.held = object()


def carry(error):
    return carried.rebuilt(carried.described(error), "T")


class CarriedTest(unittest.TestCase):
    def test_an_exception_of_plain_content_arrives_as_itself(self):
        for error in (
            ValueError("boom", 1),
            KeyError("a"),
            FileNotFoundError(2, "No such file", "name"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            ImportError("no", name="module"),
            SyntaxError("bad", ("file", 1, 2, "text")),
            NeedsTwo(1, 2),
            GoesOn("later"),
            ClientError({"Error": {"Code": "X", "Message": "m"}}, "Receive"),
        ):
            with self.subTest(repr(error)):
                arrived = carry(error)
                self.assertIs(type(error), type(arrived))
                self.assertEqual(
                    (str(error), error.args, error.__dict__), (str(arrived), arrived.args, arrived.__dict__)
                )
        self.assertEqual(("name", 2), (carry(FileNotFoundError(2, "x", "name")).filename, 2))

    def test_making_it_again_runs_no_code_of_its_class(self):
        error = NeedsTwo(1, 2)
        constructed.clear()
        self.assertEqual(1, carry(error).one)
        self.assertEqual([], constructed)

    def test_one_that_would_run_code_or_is_not_plain_or_would_end_the_worker_arrives_as_text(self):
        for error in (Hooks(), MakesItself("x"), WithSlots(), Metaclassed(), HoldsAnObject(), ValueError(object())):
            constructed.clear()
            with self.subTest(repr(error)):
                arrived = carry(error)
                self.assertIsInstance(arrived, RemoteError)
                self.assertIn(type(error).__name__, str(arrived))
                self.assertEqual([], constructed)
        for error in (KeyboardInterrupt(), GeneratorExit()):
            self.assertIsInstance(carry(error), RemoteError)

    def test_a_class_that_is_not_loaded_here_arrives_as_text(self):
        class Local(Exception):
            pass

        error = Local("x")
        self.assertIsInstance(carry(error), RemoteError)
        Local.__module__, Local.__qualname__ = "not.loaded", "Local"
        self.assertIsInstance(carry(error), RemoteError)

    def test_a_name_that_leads_to_something_else_arrives_as_text(self):
        for name in ("carry", "unittest", "unittest.main", "CarriedTest", "nothing.at.all"):
            error = ValueError("x")
            with self.subTest(name):
                kind = type("Elsewhere", (Exception,), {"__module__": __name__, "__qualname__": name})
                self.assertIsInstance(carry(kind(str(error))), RemoteError)

    def test_long_texts_are_cut(self):
        arrived = carry(KeyboardInterrupt("x" * 10_000_000))
        self.assertLess(len(arrived.summary) + len(arrived.traceback), 250_000)
        self.assertLess(len(carry(ValueError("x" * 10_000_000)).traceback), 250_000)


if __name__ == "__main__":
    unittest.main()
