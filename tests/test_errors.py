"""The package's exceptions: they survive being copied and pickled, so that a pool of the user's can hand them on."""

import concurrent.futures
import copy
import functools
import inspect
import multiprocessing
import pickle
import unittest

from sqstaskmaster import LocalQueue, TaskManager, endings, errors, results

DIED = {"task": "T", "pid": 7, "seconds": 1.5, "stack": "here"}

# What those with a constructor of their own are made of; the others take a text.
MADE_OF = {
    errors.MessageTooLarge: lambda kind: kind("T", 2, 1),
    errors.ClaimLapsed: lambda kind: kind(3.5),
    errors.TaskDied: lambda kind: kind("died", **DIED),
    errors.TaskKilled: lambda kind: kind(9, **DIED),
    errors.TaskExited: lambda kind: kind(3, "somehow", **DIED),
    errors.TaskNotStarted: lambda kind: kind("T", "no memory"),
    errors.MemoryLimitExceeded: lambda kind: kind("T", 2, 1),
    errors.RemoteError: lambda kind: kind("T", "ValueError: no", "traceback"),
    errors.ArgumentsDoNotFit: lambda kind: kind("T", "no argument", "(a, b)"),
    errors.UnknownTask: lambda kind: kind("T", ["A", "B"]),
    errors.PollRefused: lambda kind: kind(ValueError("no"), "AccessDenied", "allow it", "queue"),
    endings.Continue: lambda kind: kind.after(5, step=2),
    **dict.fromkeys(
        (errors._Unsent, errors.TasksNotSent, errors.SubmitInterrupted),
        lambda kind: kind("", [errors.Failure(0, "T", {"a": 1}, "Code", "reason")], untaken(), results.SubmitResult()),
    ),
}


def untaken():
    yield "T", {"a": 2}
    yield "T", {"a": 3}


def kinds():
    for module in (errors, endings):
        for kind in vars(module).values():
            if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__ == module.__name__:
                yield kind


def fields(error):
    found = {name: value for name, value in vars(error).items() if name not in ("rest", "result")}
    return type(error), str(error), error.args, found


def submit_too_much():
    TaskManager("local", queue_constructor=LocalQueue).submit("T", a="x" * (2 << 20))


class CopyTest(unittest.TestCase):
    def test_all_survive_copy_deepcopy_and_pickle_with_their_texts_and_fields(self):
        for kind in kinds():
            error = MADE_OF.get(kind, lambda kind: kind("the text"))(kind)
            for copied in (
                copy.copy,
                copy.deepcopy,
                *(
                    functools.partial(lambda protocol, error: pickle.loads(pickle.dumps(error, protocol)), protocol)
                    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
                ),
            ):
                with self.subTest(kind=kind.__name__, copied=copied):
                    self.assertEqual(fields(error), fields(copied(error)))

    def test_tasks_that_were_never_taken_come_along_and_can_be_sent_again(self):
        error = MADE_OF[errors.TasksNotSent](errors.TasksNotSent)
        expected = [("T", {"a": 1}), ("T", {"a": 2}), ("T", {"a": 3})]
        self.assertEqual(expected, list(pickle.loads(pickle.dumps(error))))
        self.assertEqual(expected, list(error))

    def test_an_error_of_os_keeps_its_number(self):
        for kind in (errors.HardTimeout, errors.NoAnswer):
            self.assertEqual(110, pickle.loads(pickle.dumps(kind(110, "timed out"))).errno)

    def test_a_pool_of_processes_hands_them_on(self):
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            error = pool.submit(submit_too_much).exception(60)
        self.assertIsInstance(error, errors.MessageTooLarge)
        self.assertEqual(("T", 1 << 20), (error.task, error.limit))


if __name__ == "__main__":
    unittest.main()
