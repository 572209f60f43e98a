"""Runs the modules of a suite side by side, in processes of their own, and tells of them as if there were but one.

Most of what the tests do is to wait: for timeouts, claims, and processes that end. Each process takes the next module
that nobody has taken, runs it from first test to last, and writes down what became of each test. Files and no pipes,
because tests close descriptors and write into what is open. A process that dies fails the test it was in, and the
others go on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import warnings

#: In the environment of a run: how many modules run at a time. 1: one after the other, in the process of the run.
PROCESSES = "SQSTASKMASTER_TESTS_PROCESSES"

# They last longest: none of them is to be left alone at the end.
_FIRST = (
    "tests.cli.test_cli_worker",
    "tests.service.test_slots_laws",
    "tests.service.test_slots_endings",
    "tests.service.test_warm",
    "tests.cli.test_cli",
    "tests.test_sqss_word",
    "tests.test_process_handler",
    "tests.test_laws",
    "tests.service.test_simulation",
    "tests.service.test_slots",
    "tests.service.test_ecs",
    "tests.cli.test_ps",
    "tests.cli.test_dead",
    "tests.sending.test_producing",
    "tests.test_endings",
    "tests.signals.test_scripts",
    "tests.service.test_supervisor",
    "tests.signals.test_shutdown",
    "tests.test_observations",
    "tests.cli.test_demo",
    "tests.service.test_slots_weather",
    "tests.cli.test_run",
    "tests.repository.test_checkpoint",
    "tests.test_queue_laws",
)

# The threads of solvers and trainers wait for each other in busy loops: nothing else gets on beside them. So they come
# after all others, one by one.
_ALONE = ("tests.repository.test_examples",)

_LOOK_SECONDS = 0.05
# What stands in the run's own way to an end, when it is interrupted.
_STOP_SECONDS = 5


def side_by_side(suite):
    """The same tests; all of them in this process where nothing is gained, or the system lacks what it takes."""
    processes = int(os.environ.get(PROCESSES, 2 * len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1))
    return _SideBySide(suite, processes) if processes > 1 else suite


class _SideBySide(unittest.TestSuite):
    def __init__(self, suite, processes):
        super().__init__([suite])
        self._processes = processes

    def run(self, result, debug=False):
        if debug:
            return super().run(result, debug)
        here, modules = _sorted(self)
        alone = {name: names for name, names in modules.items() if name in _ALONE}
        self._run([names for name, names in modules.items() if name not in alone], self._processes, result)
        self._run(list(alone.values()), 1, result)
        # Last, because what follows one of them counts as its own time with the guard of this process.
        if not result.shouldStop:
            here.run(result)
        return result

    def _run(self, modules, processes, result):
        """Run the modules, the names of whose tests are given, so many at a time."""
        with tempfile.TemporaryDirectory(prefix="sqstaskmaster-tests-") as folder:
            plan = {"modules": modules, "buffer": result.buffer, "tb_locals": result.tb_locals}
            with open(os.path.join(folder, "plan"), "w") as file:
                json.dump(plan, file)
            count = min(processes, len(modules))
            with contextlib.ExitStack() as stack:
                names = map(str, itertools.count())
                running = [stack.enter_context(_Process(folder, next(names), result)) for _ in range(count)]
                # All are told to stop before any is waited for.
                stack.callback(lambda: [process.interrupt() for process in running])
                while running and not result.shouldStop:
                    time.sleep(_LOOK_SECONDS)
                    ended = [process for process in running if process.has_ended()]
                    running = [process for process in running if process not in ended]
                    # One that died took what it still had to do with it, and what nobody has taken yet is for another.
                    # Without the folder, which somebody has tidied away, each would die at once.
                    running += [
                        stack.enter_context(_Process(folder, next(names), result))
                        for process in ended
                        if process.died and os.path.exists(folder)
                    ]


def _sorted(suite):
    """What has to run here, such as modules that cannot be imported; and the tests' names by module, longest first."""
    here, modules = unittest.TestSuite(), {}
    pending = [suite]
    while pending:
        test = pending.pop()
        if isinstance(test, unittest.TestSuite):
            pending += reversed(list(test))
        elif type(test).__module__.startswith("unittest."):
            here.addTest(test)
        else:
            modules.setdefault(type(test).__module__, []).append(test.id())
    rank = {name: number for number, name in enumerate(_FIRST)}
    return here, {name: modules[name] for name in sorted(modules, key=lambda name: rank.get(name, len(rank)))}


class _Process:
    """One of the processes, from the side of the run."""

    def __init__(self, folder, name, result):
        self._output = os.path.join(folder, name)
        self._result = result
        self._read = 0
        # What became of the test that runs, until it has ended: what a run prints of two tests must not mix.
        self._held = []
        self.died = False
        options = [f"-W{option}" for option in sys.warnoptions]
        self._process = subprocess.Popen(
            [sys.executable, *options, "-m", __name__, folder, name, str(os.getpid())], stdin=subprocess.DEVNULL
        )

    def __enter__(self):
        return self

    def interrupt(self):
        self._process.send_signal(signal.SIGINT)

    def __exit__(self, *_):
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)

    def has_ended(self):
        """Whether it has, once all that it wrote has been told to the run."""
        code = self._process.poll()
        self._tell()
        if code is None:
            return False
        if code:
            self.died = True
            test = self._held[0][1] if self._held else _Test("between two tests", "", None)
            self._held.append(("addError", test, {"text": f"the process of this test ended with {code}"}))
            if len(self._held) > 1:
                self._held.append(("stopTest", test, {}))
            self._replay()
        return True

    def _tell(self):
        with contextlib.suppress(FileNotFoundError), open(self._output, "rb") as file:
            file.seek(self._read)
            written = file.read()
            whole = written[: written.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                event, test, values = json.loads(line)
                self._held.append((event, _Test(*test), values))
                if event == "stopTest" or self._held[0][0] != "startTest":
                    self._replay()

    def _replay(self):
        for event, test, values in self._held:
            if "text" in values:
                values["err"] = (Elsewhere, Elsewhere(f"\n{values.pop('text').rstrip()}"), None)
            getattr(self._result, event)(test, **values)
        self._held.clear()


class Elsewhere(Exception):
    """What went wrong in another process, with its traceback as text."""


class _Test:
    """A test of another process, as a result prints it."""

    failureException = AssertionError

    def __init__(self, name, text, description):
        self._name, self._text, self._description = name, text, description

    def id(self):
        return self._name

    def shortDescription(self):
        return self._description

    def __str__(self):
        return self._text or self._name


# -- in such a process -----------------------------------------------------------------------------------------------


class _Recorder(unittest.TestResult):
    """Writes down each event, as the arguments of the call with which to repeat it."""

    def __init__(self, output):
        super().__init__()
        self._output = output

    def _write(self, event, test, **values):
        line = json.dumps((event, (test.id(), str(test), test.shortDescription()), values)).encode() + b"\n"
        # Opened each time: a test may close whatever it finds open.
        output = os.open(self._output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(output, line)
        finally:
            os.close(output)

    def startTest(self, test):
        super().startTest(test)
        self._write("startTest", test)

    def stopTest(self, test):
        super().stopTest(test)
        self._write("stopTest", test)

    def addSuccess(self, test):
        self._write("addSuccess", test)

    def addError(self, test, err):
        super().addError(test, err)
        self._write("addError", test, text=self.errors.pop()[1])

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._write("addFailure", test, text=self.failures.pop()[1])

    def addSubTest(self, test, subtest, err):
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            (self.addFailure if failed else self.addError)(subtest, err)

    def addSkip(self, test, reason):
        self._write("addSkip", test, reason=reason)

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self._write("addExpectedFailure", test, text=self.expectedFailures.pop()[1])

    def addUnexpectedSuccess(self, test):
        self._write("addUnexpectedSuccess", test)

    def addDuration(self, test, elapsed):
        self._write("addDuration", test, elapsed=elapsed)


def _main(folder, name, parent):
    from sqstaskmaster._isolation import process_tree

    # However the run ends, nothing that it started goes on.
    process_tree.die_with_parent()
    if os.getppid() != int(parent):
        return
    if not sys.warnoptions:
        warnings.simplefilter("default")
    with open(os.path.join(folder, "plan")) as file:
        plan = json.load(file)
    result = _Recorder(os.path.join(folder, name))
    result.buffer, result.tb_locals = plan["buffer"], plan["tb_locals"]
    for number, names in enumerate(plan["modules"]):
        try:
            os.close(os.open(os.path.join(folder, f"taken-{number}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        unittest.defaultTestLoader.loadTestsFromNames(names).run(result)


if __name__ == "__main__":
    _main(*sys.argv[1:])
