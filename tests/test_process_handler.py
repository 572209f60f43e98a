"""ProcessMessageHandler with real child processes, over every start method.

The tasks are at module level, since two of the three start methods must pickle them.
"""

import contextlib
import ctypes
import functools
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
import warnings
from unittest import mock

from sqstaskmaster import LocalMessage, ProcessMessageHandler
from sqstaskmaster._claim import note
from sqstaskmaster._isolation import child as isolation
from sqstaskmaster.errors import (
    HandlerStuck,
    HardTimeout,
    MemoryLimitExceeded,
    RemoteError,
    TaskExited,
    TaskKilled,
    TaskNotPicklable,
    UnsupportedContext,
)
from tests.guard import awake_seconds
from tests.support import DEADLINE_SECONDS, STARTS_A_DAEMON, Script, wait_until
from tests.support.descriptors import left_open, open_descriptors

HANGING = {"about": "to hang"}

# Generous for a loaded machine, and still far from the hour that the hung tasks would take.
SOON_SECONDS = 20


class NeedsTwoArguments(Exception):
    """Its constructor needs more than the text that is left of it."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class HasALock(Exception):
    """Cannot be pickled."""

    def __init__(self):
        super().__init__("locked")
        self.lock = threading.Lock()


def daemonise_and_tell(path):
    """A process that has left its session, its group and its parent, with every descriptor it inherited."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            tell(path, os.getpid())
            time.sleep(3600)
        os._exit(0)
    os.wait()
    wait_until(lambda: told(path), "the daemon has told its pid")


def tell(path, value):
    with open(path + ".part", "w") as part:
        part.write(str(value))
    os.rename(path + ".part", path)


def told(path):
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return None


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def hold_the_interpreter():
    # PyDLL keeps the interpreter's lock during the call; select, unlike sleep, with no descriptor to be woken by.
    while True:
        ctypes.PyDLL(None).sleep(3600)


class Tasks:
    """What a task can do, by name. `path` is a file to tell something in.

    A task that is about to hang says so: from then on the handler's clock stands at its hard timeout.
    """

    def hang(self):
        self.about_to_hang()
        time.sleep(3600)

    def about_to_hang(self):
        self.report(**HANGING)

    def returns(self):
        self.report(done=1, of=3)
        return {"answer": 42}

    def returns_much(self):
        return b"x" * 500_000

    def returns_too_much(self):
        return b"x" * 10_000_000

    def returns_what_cannot_be_pickled(self):
        return threading.Lock()

    def raises(self):
        raise ValueError("boom")

    def raises_what_needs_two_arguments(self):
        raise NeedsTwoArguments(1, 2)

    def raises_what_cannot_be_pickled(self):
        raise HasALock()

    def raises_keyboard_interrupt(self):
        raise KeyboardInterrupt()

    def runs_out_of_memory(self):
        raise MemoryError()

    def crashes(self):
        ctypes.string_at(0)

    def exits_0(self):
        os._exit(0)

    def exits_1(self):
        os._exit(1)

    def sys_exits(self):
        sys.exit("enough")

    def is_killed(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def is_terminated(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3600)

    def kills_its_keeper(self):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)

    def stops_its_keeper(self):
        os.kill(os.getppid(), signal.SIGSTOP)
        self.hang()

    def is_busy(self):
        self.about_to_hang()
        while True:
            pass

    def sleeps(self):
        tell(self.path, os.getpid())
        self.hang()

    def sleeps_in_finally(self):
        try:
            self.hang()
        finally:
            tell(self.path, "finally")

    def is_busy_in_try(self):
        busy = True
        self.about_to_hang()
        try:
            while busy:
                pass
        finally:
            tell(self.path, "finally")

    def is_busy_without_end_in_try(self):
        busy = True
        self.about_to_hang()
        try:
            while True:
                if not busy:
                    break
        finally:
            tell(self.path, "finally")

    def holds_the_interpreter(self):
        self.about_to_hang()
        hold_the_interpreter()

    def leaves_the_interpreter(self):
        self.about_to_hang()
        while True:
            ctypes.CDLL(None).sleep(3600)

    def matches(self):
        self.about_to_hang()
        re.match(r"(a+)+b", "a" * 64)

    def swallows_exceptions(self):
        self.about_to_hang()
        while True:
            try:
                time.sleep(3600)
            except Exception:
                pass

    def swallows_everything(self):
        self.about_to_hang()
        while True:
            try:
                time.sleep(3600)
            except BaseException:
                pass

    def swallows_and_returns(self):
        self.about_to_hang()
        try:
            time.sleep(3600)
        except BaseException:
            return "as if nothing had happened"

    def blocks_all_signals(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self.hang()

    def replaces_signals(self):
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self.hang()

    def deadlocks(self):
        lock = threading.Lock()
        lock.acquire()
        self.about_to_hang()
        lock.acquire()

    def joins_for_ever(self):
        self.about_to_hang()
        thread = threading.Thread(target=time.sleep, args=(3600,))
        thread.start()
        thread.join()

    def leaves_a_thread(self):
        task = threading.get_ident()

        def stay():
            wait_until(lambda: "_shutdown" in str(traceback.extract_stack(sys._current_frames()[task])), "run is over")
            self.hang()

        threading.Thread(target=stay).start()

    def closes_descriptors(self):
        os.closerange(3, 256)
        self.hang()

    def runs_a_shell(self):
        subprocess.Popen(f"sleep 3600 & echo $! > {self.path}.part; mv {self.path}.part {self.path}; wait", shell=True)
        wait_until(lambda: told(self.path), "the shell has told its job")
        self.hang()

    def makes_a_daemon(self):
        daemonise_and_tell(self.path)
        self.hang()

    def makes_a_daemon_and_exits(self):
        daemonise_and_tell(self.path)
        os._exit(3)

    def makes_a_daemon_and_returns(self):
        daemonise_and_tell(self.path)

    def spoils_its_process(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        os.closerange(3, 1024)
        os.chdir("/")
        os.environ["SPOILT"] = "yes"
        threading.stack_size(1 << 20)
        os._exit(0)

    def takes_memory(self):
        taken = bytearray(400_000_000)
        time.sleep(3600)
        del taken

    def reports_from_elsewhere(self):
        pid = os.fork()
        if pid == 0:
            try:
                self.report(wrong=True)
            except RuntimeError:
                os._exit(7)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def touches_the_message(self):
        try:
            self._message.delete()
        except UnsupportedContext:
            return self._message.body

    def reports_for_ever(self):
        for count in range(10**9):
            self.report(count=count)
            time.sleep(0.01)


class Handler(Tasks, ProcessMessageHandler):
    def __init__(self, message, task, path="", hard_timeout=3600, sqs_timeout=120, alarm_timeout=0.1, **options):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout, clock=self.clock, **options)
        self._claim_clock = time.monotonic  # the jump is to be seen by the limit only
        self.task = task
        self.path = path
        self.notified = []

    def clock(self):
        hanging = getattr(self, "progress", {}) == HANGING
        return time.monotonic() + (self.hard_timeout if hanging else 0)

    def run(self):
        return getattr(Tasks, self.task)(self)

    def notify(self, exception, context=None):
        self.notified.append((exception, context))


class HungRunningHandler(Handler):
    answer = threading.Event()

    def running(self):
        self.answer.wait(DEADLINE_SECONDS)
        return False


class StuckHandler(Handler):
    def clock(self):
        return time.monotonic()

    def running(self):
        return not self.progress


class Case(unittest.TestCase):
    start_method = "fork"

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "told")
        self.message = LocalMessage('{"task": "T", "kwargs": {}}', {"ApproximateReceiveCount": "1"})
        note.leave(self.message, note.Receipt(time.monotonic(), time.monotonic(), 3))
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def handler(self, task, kind=Handler, **options):
        return kind(self.message, task, self.path, start_method=self.start_method, **options)

    def run_task(self, task, kind=Handler, **options):
        """The handler after its block; what run() returned or raised is in `handler.returned`, `handler.raised`."""
        handler = self.handler(task, kind, **options)
        began = awake_seconds()
        handler.returned = handler.raised = None
        with handler:
            try:
                handler.returned = handler.run()
            except Exception as error:
                handler.raised = error
                raise
        handler.seconds = awake_seconds() - began
        self.assertLess(handler.seconds, SOON_SECONDS)
        return handler

    def assert_failed(self, handler, kind, outcome="failed"):
        self.assertIsInstance(handler.raised, kind)
        self.assertEqual(outcome, handler.outcome)
        self.assertFalse(self.message.deleted)
        self.assertIs(handler.raised, handler.notified[-1][0])


class EveryStartMethod:
    """What holds however the task's process was started."""

    def test_what_the_task_returns_and_reports_arrives_and_the_message_is_deleted(self):
        handler = self.run_task("returns")
        self.assertEqual({"answer": 42}, handler.returned)
        self.assertEqual({"done": 1, "of": 3}, handler.progress)
        self.assertEqual("done", handler.outcome)
        self.assertTrue(self.message.deleted)

    def test_the_line_of_a_finished_task_has_what_it_used_as_fields_and_in_words(self):
        logging.disable(logging.NOTSET)
        with self.assertLogs("sqstaskmaster.message_handler", "INFO") as logs:
            self.run_task("returns")
        (finished,) = [record for record in logs.records if getattr(record, "action", "") == "finished"]
        self.assertRegex(finished.getMessage(), r"done.*, CPU \d+\.\d{3} s, peak memory \d+\.\d MiB$")
        self.assertGreater(finished.cpu_seconds, 0)
        self.assertLess(finished.peak_memory, 200 << 20)

    def test_a_result_larger_than_a_pipe_arrives_and_one_over_a_mebibyte_as_text(self):
        self.assertEqual(b"x" * 500_000, self.run_task("returns_much").returned)
        returned = self.run_task("returns_too_much").returned
        self.assertTrue(returned.startswith("b'xxx"))
        self.assertLess(len(returned), 20_000)
        self.assertTrue(self.message.deleted)

    def test_a_result_that_is_no_plain_data_arrives_as_its_repr_and_the_task_is_done(self):
        handler = self.run_task("returns_what_cannot_be_pickled")
        self.assertIn("lock object", handler.returned)
        self.assertTrue(self.message.deleted)

    def test_an_exception_is_raised_here_with_the_task_s_traceback(self):
        handler = self.run_task("raises")
        self.assert_failed(handler, ValueError)
        self.assertEqual("boom", str(handler.raised))
        self.assertIn("in raises", str(handler.raised.__cause__))

    def test_an_exception_that_cannot_be_carried_over_arrives_as_text(self):
        for task, text in (
            ("raises_what_cannot_be_pickled", "HasALock: locked"),
            ("raises_keyboard_interrupt", "KeyboardInterrupt"),
        ):
            with self.subTest(task):
                handler = self.run_task(task)
                self.assert_failed(handler, RemoteError)
                self.assertIn(text, str(handler.raised))
                self.assertIn(f"in {task}", handler.raised.traceback)

    def test_an_exception_whose_constructor_needs_more_than_its_text_arrives_as_itself(self):
        handler = self.run_task("raises_what_needs_two_arguments")
        self.assert_failed(handler, NeedsTwoArguments)
        self.assertEqual("1 and 2", str(handler.raised))

    def test_only_a_task_that_said_it_finished_is_a_success(self):
        for task, kind, text in (
            ("exits_0", TaskExited, "code 0"),
            ("exits_1", TaskExited, "code 1"),
            ("sys_exits", TaskExited, "sys.exit('enough')"),
            ("is_killed", TaskKilled, "memory"),
            ("is_terminated", TaskKilled, "SIGTERM"),
            ("runs_out_of_memory", MemoryError, ""),
            ("kills_its_keeper", TaskKilled, ""),
        ):
            with self.subTest(task):
                handler = self.run_task(task)
                self.assert_failed(handler, kind)
                self.assertIn(text, str(handler.raised))

    def test_a_death_says_task_pid_and_seconds(self):
        note.leave(self.message, note.Receipt(time.monotonic(), time.monotonic(), 3, "Train"))
        error = self.run_task("exits_1").raised
        self.assertEqual(("Train", 1), (error.task, error.exit_code))
        self.assertIn(f"Train (pid {error.pid})", str(error))
        self.assertGreater(error.seconds, 0)

    def test_a_crash_leaves_its_stack(self):
        handler = self.run_task("crashes")
        self.assert_failed(handler, TaskKilled)
        self.assertEqual(signal.SIGSEGV, handler.raised.signal)
        self.assertIn("in crashes", handler.notified[-1][1]["stack"])
        self.assertIn("in crashes", str(handler.raised.__cause__))

    def test_c_code_that_holds_the_interpreter_is_stopped_and_tells_where_it_was(self):
        handler = self.run_task("holds_the_interpreter", term_grace=0.5)
        self.assert_failed(handler, HardTimeout, "timed out")
        stack = handler.notified[-1][1]["stack"]
        self.assertIn("in holds_the_interpreter", stack)
        self.assertNotIn("task_side.py", stack)

    def test_a_task_that_ends_on_sigterm_runs_its_finally_blocks(self):
        for task in ("sleeps_in_finally", "is_busy_in_try", "is_busy_without_end_in_try"):
            with self.subTest(task):
                handler = self.run_task(task, term_grace=SOON_SECONDS)
                self.assert_failed(handler, HardTimeout, "timed out")
                self.assertEqual("finally", told(self.path))
                os.unlink(self.path)

    def test_a_daemonised_grandchild_ends_with_the_task(self):
        for task in ("makes_a_daemon", "makes_a_daemon_and_exits", "makes_a_daemon_and_returns"):
            with self.subTest(task):
                self.run_task(task, term_grace=0.1)
                self.assertFalse(alive(told(self.path)))
                os.unlink(self.path)

    def test_what_a_task_does_to_its_process_does_not_reach_the_next(self):
        self.run_task("returns")  # a fork server that is started for the first task stays
        before = (os.getcwd(), dict(os.environ), signal.getsignal(signal.SIGALRM))
        descriptors = open_descriptors()
        self.run_task("spoils_its_process")
        self.assertEqual("timed out", self.run_task("is_busy", term_grace=0.1).outcome)
        self.assertEqual(before, (os.getcwd(), dict(os.environ), signal.getsignal(signal.SIGALRM)))
        self.assertEqual(set(), left_open(descriptors))
        self.assertEqual("done", self.run_task("returns").outcome)

    def test_the_task_has_the_content_of_the_message_but_not_its_claim(self):
        self.assertEqual(self.message.body, self.run_task("touches_the_message").returned)


class ForkTest(EveryStartMethod, Case):
    start_method = "fork"


class SpawnTest(EveryStartMethod, Case):
    start_method = "spawn"

    def test_a_handler_that_cannot_be_pickled_is_refused_before_anything_starts(self):
        handler = self.handler("sleeps")
        handler.lock = threading.Lock()
        with handler:
            with self.assertRaisesRegex(TaskNotPicklable, "spawn.*start_method='fork'"):
                handler.run()
            handler.raised = True
            self.assertIsNone(told(self.path))


class ForkserverTest(EveryStartMethod, Case):
    start_method = "forkserver"


class HungTest(Case):
    """One fast case of each kind of hung task."""

    def stopped(self, task, **options):
        handler = self.run_task(task, term_grace=0.5, **options)
        self.assert_failed(handler, HardTimeout, "timed out")
        return handler


def _add_hung_tests():
    for task in (
        "is_busy",
        "sleeps",
        "leaves_the_interpreter",
        "matches",
        "swallows_exceptions",
        "swallows_everything",
        "replaces_signals",
        "deadlocks",
        "joins_for_ever",
        "leaves_a_thread",
        "closes_descriptors",
        "stops_its_keeper",
    ):

        def test(self, task=task):
            stack = self.stopped(task).notified[-1][1]["stack"]
            # Python itself waits for a thread that was left, after the task's own code.
            self.assertIn("_shutdown" if task == "leaves_a_thread" else f"in {task}", stack)
            self.assertRegex(stack, r"line \d+, in \w+")

        setattr(HungTest, f"test_a_task_that_{task}_is_stopped_and_tells_where_it_was", test)


_add_hung_tests()


class StoppingTest(Case):
    def test_a_task_that_blocks_all_signals_is_killed(self):
        handler = self.run_task("blocks_all_signals", term_grace=0.2)
        self.assert_failed(handler, HardTimeout, "timed out")

    def test_a_shell_and_its_background_job_end_with_the_task(self):
        self.run_task("runs_a_shell", term_grace=0.2)
        self.assertFalse(alive(told(self.path).strip()))

    def test_a_body_that_returns_after_it_was_stopped_is_no_success(self):
        handler = self.run_task("swallows_and_returns", term_grace=SOON_SECONDS)
        self.assert_failed(handler, HardTimeout, "timed out")

    def test_the_claim_is_held_until_the_last_process_is_gone(self):
        before = []
        handler = self.handler("swallows_everything", term_grace=2, alarm_timeout=0.5)
        handler.notify = lambda *_, **__: None
        extend = handler._extend_timeout

        def extend_and_look(seconds):
            before.append(handler._attempt.stopped_as)
            extend(seconds)

        handler._extend_timeout = extend_and_look
        with handler:
            handler.run()
        self.assertGreaterEqual(before.count("timed out"), 2)

    def test_a_handler_whose_task_makes_no_progress_is_stopped_as_stuck(self):
        handler = self.run_task("swallows_everything", StuckHandler, term_grace=0.1)
        self.assert_failed(handler, HandlerStuck, "stuck")

    def test_neither_heartbeat_nor_limit_waits_for_running_and_one_that_hangs_is_warned_of_once(self):
        HungRunningHandler.answer.clear()
        self.addCleanup(HungRunningHandler.answer.set)
        logging.disable(logging.NOTSET)
        with self.assertLogs("sqstaskmaster", "WARNING") as logs:
            handler = self.handler("swallows_everything", HungRunningHandler, term_grace=0.1)
            handler.__dict__["_clock"] = time.monotonic
            handler.hard_timeout = 2.0
            with handler:
                handler.run()
        self.assertEqual("timed out", handler.outcome)
        self.assertGreaterEqual(len(self.message.visibility_changes), 2)
        self.assertEqual(1, sum("running()" in line for line in logs.output))

    def test_an_answer_that_running_gives_late_still_counts(self):
        HungRunningHandler.answer.clear()
        self.addCleanup(HungRunningHandler.answer.set)
        handler = self.handler("sleeps", HungRunningHandler, term_grace=0.1)
        handler.__dict__["_clock"] = time.monotonic
        threading.Timer(0.5, HungRunningHandler.answer.set).start()
        with handler:
            handler.run()
        self.assertEqual("stuck", handler.outcome)

    def test_what_running_raises_stops_the_task(self):
        class Raises(Handler):
            def running(self):
                raise KeyError("no such gauge")

        handler = self.handler("sleeps", Raises, term_grace=0.1)
        handler.__dict__["_clock"] = time.monotonic
        with handler:
            handler.run()
        self.assertEqual("failed", handler.outcome)
        self.assertIsInstance(handler.notified[-1][0], KeyError)

    def test_a_task_over_its_memory_is_stopped(self):
        handler = self.run_task("takes_memory", max_memory=200_000_000, term_grace=0.1)
        self.assert_failed(handler, MemoryLimitExceeded)
        self.assertGreater(handler.raised.size, handler.raised.limit)
        self.assertIn("in takes_memory", handler.notified[-1][1]["stack"])

    def test_a_task_below_its_memory_is_left_alone(self):
        self.assertEqual("done", self.run_task("returns", max_memory=2_000_000_000).outcome)

    def test_a_slow_answer_of_sqs_does_not_delay_the_limit(self):
        answer = threading.Event()
        self.addCleanup(answer.set)
        self.message.change_visibility = lambda **_: answer.wait(DEADLINE_SECONDS)
        handler = self.run_task("sleeps", term_grace=0.1)
        self.assert_failed(handler, HardTimeout, "timed out")

    def interrupt_when_started(self, times=1):
        def interrupt():
            for _ in range(times):
                wait_until(lambda: told(self.path), "the task has started")
                os.unlink(self.path)
                # As a terminal does it where there is one thread: held back while the task's process is started.
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        self.addCleanup(thread.join)

    def test_ctrl_c_stops_the_task_and_gives_the_message_back(self):
        handler = self.handler("sleeps", term_grace=SOON_SECONDS)
        self.interrupt_when_started()
        with self.assertRaises(KeyboardInterrupt):
            with handler:
                handler.run()
        self.assertEqual("interrupted", handler.outcome)
        self.assertEqual(0, self.message.visibility_changes[-1])
        self.assertFalse(self.message.deleted)
        self.assertIn("in sleeps", handler.notified[-1][1]["stack"])

    def test_a_second_ctrl_c_means_now(self):
        class Handler2(Handler):
            def run(self):
                tell(self.path, "started")
                while True:
                    try:
                        time.sleep(3600)
                    except BaseException:
                        tell(self.path, "told to stop")

        handler = self.handler("", Handler2, term_grace=3600)
        self.interrupt_when_started(2)
        with self.assertRaises(KeyboardInterrupt):
            with handler:
                handler.run()
        self.assertEqual("interrupted", handler.outcome)

    def test_a_second_ctrl_c_before_the_first_could_stop_the_task_stops_it_all_the_same(self):
        handler = self.handler("sleeps", term_grace=3600)
        self.interrupt_when_started()
        with mock.patch.object(isolation.Child, "stop", side_effect=KeyboardInterrupt("the second")):
            with self.assertRaises(KeyboardInterrupt):
                with handler:
                    handler.run()
        self.assertEqual("interrupted", handler.outcome)
        self.assertEqual(0, self.message.visibility_changes[-1])

    def test_a_worker_that_is_killed_takes_its_task_and_all_below_it_along(self):
        script = Script(self, KILLED_WORKER)
        pids = script.wait_for("pids").split()[1:]
        self.assertTrue(all(alive(pid) for pid in pids))
        script.end()
        wait_until(lambda: not any(alive(pid) for pid in pids), "the task and its daemon are gone")


KILLED_WORKER = STARTS_A_DAEMON + """
import time
import traceback
from sqstaskmaster import LocalMessage, ProcessMessageHandler

class Task(ProcessMessageHandler):
    def run(self):
        print("pids", os.getpid(), start_a_daemon(), flush=True)
        time.sleep(3600)

with Task(LocalMessage("{}", {}), 30, 10, 3600) as handler:
    handler.run()
"""


class SupervisionTest(Case):
    def test_a_handler_that_cannot_be_pickled_runs_with_fork(self):
        handler = self.handler("returns")
        handler.lock = threading.Lock()
        with handler:
            self.assertEqual({"answer": 42}, handler.run())

    def test_progress_arrives_while_the_task_runs(self):
        class Handler2(StuckHandler):
            def running(self):
                return self.progress.get("count", 0) < 3

        handler = self.run_task("reports_for_ever", Handler2, term_grace=0.1)
        self.assert_failed(handler, HandlerStuck, "stuck")

    def test_only_the_task_s_own_process_reports(self):
        self.assertEqual(7, self.run_task("reports_from_elsewhere").returned)

    def test_no_descriptor_and_no_process_is_left_by_many_tasks(self):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # to process 1 come the orphans of earlier tests, to be reaped
                pass
        self.run_task("returns")
        before = open_descriptors()
        for _ in range(10):
            self.run_task("returns")
            self.run_task("exits_1")
        self.assertEqual(set(), left_open(before))
        with self.assertRaises(ChildProcessError):
            while True:  # what other tests started may be there, but none of it ends now
                pid, _ = os.waitpid(-1, os.WNOHANG)
                self.assertEqual(0, pid, "a process was not reaped")
                raise ChildProcessError

    def test_it_needs_no_main_thread(self):
        handlers = []
        thread = threading.Thread(target=lambda: handlers.append(self.run_task("returns")))
        thread.start()
        thread.join(DEADLINE_SECONDS)
        self.assertEqual("done", handlers[0].outcome)

    def test_no_signal_of_the_worker_is_touched(self):
        before = signal.getsignal(signal.SIGALRM)
        handler = self.handler("returns")
        with handler:
            self.assertEqual(before, signal.getsignal(signal.SIGALRM))
            self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))
            handler.run()

    def test_a_worker_with_threads_is_warned_before_it_forks(self):
        isolation._warned_of_threads = False
        self.addCleanup(setattr, isolation, "_warned_of_threads", True)
        ended = threading.Event()
        thread = threading.Thread(target=ended.wait)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(ended.set)
        logging.disable(logging.NOTSET)
        with self.assertLogs("sqstaskmaster._isolation.child", "WARNING") as logs, warnings.catch_warnings():
            warnings.simplefilter("error")
            self.run_task("returns")
        self.assertIn("spawn", logs.output[0])

    def test_the_class_s_run_can_be_called_outside_of_a_block(self):
        self.assertEqual({"answer": 42}, self.handler("returns").run())

    def test_arguments_out_of_range_are_refused_by_value(self):
        for options, text in (
            ({"term_grace": -1}, "-1"),
            ({"term_grace": "5"}, "'5'"),
            ({"start_method": "thread"}, "'thread'"),
            ({"max_memory": 0}, "not 0"),
            ({"max_memory": 1.5}, "1.5"),
            ({"max_memory": True}, "True"),
        ):
            with self.subTest(options), self.assertRaisesRegex(ValueError, re.escape(text)):
                Handler(self.message, "returns", **options)


class ChildTest(unittest.TestCase):
    """isolation on its own: a function, and no queue."""

    def finish(self, function, **options):
        child = isolation.Child(function, name="T", **options)
        self.addCleanup(child.close)
        child.start()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        return child

    def test_a_function_s_value_is_its_result(self):
        self.assertEqual(5, self.finish(lambda channel: 5).result())

    def test_values_of_types_that_are_not_plain_arrive_as_their_repr(self):
        class Colour:
            def __repr__(self):
                return "Colour(1, 2)"

        def import_and_return(channel):
            channel.report({"half": Colour()})
            return Colour()

        child = self.finish(import_and_return)
        self.assertEqual("Colour(1, 2)", child.result())
        self.assertEqual({"half": "Colour(1, 2)"}, child.progress)

    def test_wait_says_false_when_its_time_is_over(self):
        child = isolation.Child(lambda channel: time.sleep(3600), name="T")
        self.addCleanup(child.close)
        child.start()
        self.assertFalse(child.wait(0.01))
        child.kill()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)

    def test_threads_of_the_task_end_before_it_has_finished(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "told")

            def leave_a_thread(channel):
                threading.Thread(target=lambda: (time.sleep(0.1), tell(path, "ended"))).start()

            self.finish(leave_a_thread).result()
            self.assertEqual("ended", told(path))

    def test_processes_of_multiprocessing_end_before_it_has_finished(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "told")

            def leave_a_process(channel):
                fork = multiprocessing.get_context("fork")
                fork.Process(target=lambda: (time.sleep(0.1), tell(path, "ended"))).start()

            self.finish(leave_a_process).result()
            self.assertEqual("ended", told(path))

    def test_how_a_task_ended_is_known_and_its_daemon_gone_though_the_worker_ignores_the_end_of_children(self):
        self.addCleanup(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_IGN))

        def daemonise_and_exit(channel):
            inlet, outlet = os.pipe()
            if os.fork() == 0:
                os.setsid()
                os.write(outlet, str(os.getpid()).encode())
                signal.pause()
            channel.report({"pid": int(os.read(inlet, 20))})
            os._exit(3)

        child = self.finish(daemonise_and_exit)
        with self.assertRaises(TaskExited) as caught:
            child.result()
        self.assertEqual(3, caught.exception.exit_code)
        self.assertFalse(alive(child.progress["pid"]))

    def test_a_kill_arrives_though_another_process_has_inherited_the_lifeline(self):
        child = isolation.Child(lambda channel: signal.pause(), name="T")
        self.addCleanup(child.close)
        child.start()
        other = os.fork()
        if other == 0:
            signal.pause()
            os._exit(0)
        self.addCleanup(os.waitpid, other, 0)
        self.addCleanup(os.kill, other, signal.SIGKILL)
        child.kill()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)

    def test_a_function_that_cannot_be_pickled_is_refused_by_spawn(self):
        child = isolation.Child(functools.partial(print, threading.Lock()), name="T", start_method="spawn")
        with self.assertRaises(TaskNotPicklable):
            child.start()


if __name__ == "__main__":
    unittest.main()
