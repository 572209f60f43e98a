"""One task in real processes, and what it may do to those who watch over it."""

import contextlib
import ctypes
import errno
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

from sqstaskmaster._isolation import child as isolation
from sqstaskmaster._isolation import process_tree, task
from sqstaskmaster.errors import TaskExited, TaskKilled, TaskNotStarted
from tests.support import IS_MEASURED, wait_until
from tests.support.descriptors import left_open, open_descriptors

# Generous for a loaded machine.
SOON_SECONDS = 20

MIB = 1 << 20


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def daemonise():
    """A process that has left its session, its group, its parent and its descriptors. Its pid."""
    inlet, outlet = os.pipe()
    first = os.fork()
    if first == 0:
        os.setsid()
        if os.fork() == 0:
            pid = os.getpid()
            os.dup2(outlet, 0)
            os.closerange(3, 4096)
            os.write(0, b"%d" % pid)
            signal.pause()
        os._exit(0)
    os.waitpid(first, 0)
    try:
        return int(os.read(inlet, 20))
    finally:
        os.close(inlet)
        os.close(outlet)


class Case(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.WARNING if "warning" not in self._testMethodName else logging.NOTSET)
        self.addCleanup(logging.disable, logging.NOTSET)

    def start(self, function, **options):
        child = isolation.Child(function, name="T", **options)
        self.addCleanup(self.end, child)
        child.start()
        return child

    def end(self, child):
        child.kill()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        child.close()

    def finish(self, function, **options):
        child = self.start(function, **options)
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        return child

    def attend_until(self, child, condition):
        def attended():
            child.wait(0.01)
            return condition()

        return wait_until(attended, "it holds", SOON_SECONDS)


class TrackerTest(Case):
    """What multiprocessing has for cleaning up outlives the task for a moment."""

    @unittest.skipUnless(os.path.isdir("/dev/shm"), "there is no /dev/shm")
    def test_shared_memory_of_a_task_is_gone_however_it_ended(self):
        def holds(channel):
            from multiprocessing import resource_tracker, shared_memory

            # One of its own, as in a worker that has none: this process may have started one for another test.
            resource_tracker._resource_tracker._fd = resource_tracker._resource_tracker._pid = None
            os.environ["PYTHONWARNINGS"] = "ignore"  # the tracker's, which speaks of what it cleans up
            memory = shared_memory.SharedMemory(create=True, size=1000)
            channel.report({"name": memory.name, "tracker": tracker_of_multiprocessing()})
            return memory

        def hangs(channel):
            memory = holds(channel)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while memory:
                signal.pause()

        for function, end in (
            (hangs, isolation.Child.kill),
            (hangs, isolation.Child.stop),
            (lambda channel: holds(channel) and None, None),
        ):
            with self.subTest(function=function, end=end):
                child = self.start(function, term_grace=0.1)
                self.attend_until(child, lambda: child.progress)
                if end is not None:
                    end(child)
                wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
                self.assertFalse(os.path.exists(f"/dev/shm/{child.progress['name']}"))
                self.assertFalse(alive(child.progress["tracker"]))

    def test_one_that_does_not_end_is_killed_in_the_end(self):
        def pretends(channel):
            program = "import time; print(flush=True); time.sleep(1000)"
            fake = subprocess.Popen(
                [sys.executable, "-c", program, "resource_tracker import main"], stdout=subprocess.PIPE
            )
            fake.stdout.readline()
            channel.fake = fake
            return fake.pid

        self.assertFalse(alive(self.finish(pretends).result()))


def tracker_of_multiprocessing():
    from multiprocessing import resource_tracker

    return resource_tracker._resource_tracker._pid


class VerdictTest(Case):
    def test_a_process_that_the_task_forked_and_that_returns_gives_no_verdict(self):
        def fork_then(end):
            def run(channel):
                pid = os.fork()
                if pid == 0:
                    return "the child's"
                os.waitpid(pid, 0)
                end()

            return run

        with self.assertRaises(TaskExited) as caught:
            self.finish(fork_then(lambda: os._exit(1))).result()
        self.assertEqual(1, caught.exception.exit_code)
        with self.assertRaises(TaskKilled):
            self.finish(fork_then(lambda: os.kill(os.getpid(), signal.SIGKILL))).result()
        self.assertIsNone(self.finish(fork_then(lambda: None)).result())

    def test_a_process_that_the_task_forked_and_that_raises_gives_no_verdict_but_its_exit_code(self):
        for error, code in ((ValueError("x"), 1), (SystemExit(), 0), (SystemExit(7), 7), (SystemExit("x"), 1)):
            with self.subTest(repr(error)):

                def run(channel, error=error):
                    pid = os.fork()
                    if pid == 0:
                        raise error
                    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

                self.assertEqual(code, self.finish(run).result())

    def test_a_worker_can_be_interrupted_after_a_forked_process_has_left_the_task(self):
        def run(channel):
            pid = os.fork()
            if pid == 0:
                sys.exit(0)
            os.waitpid(pid, 0)
            channel.report({"waiting": True})
            signal.pause()

        child = self.start(run)
        self.attend_until(child, lambda: child.progress)
        self.assertFalse(child.task.told)

    def test_what_a_task_writes_to_its_channel_itself_is_not_taken_for_a_verdict(self):
        for garbage in (
            b"\xff" * 1000,
            b"D\x05\x00\x00\x00nulls",
            b"D\xff\xff\xff\xff" + b"x" * 3 * MIB,
            b"E\x02\x00\x00\x00{}",
        ):
            with self.subTest(garbage[:10]):

                def run(channel, garbage=garbage):
                    os.write(channel._results, garbage)
                    os._exit(3)

                with self.assertRaises(TaskExited) as caught:
                    self.finish(run).result()
                self.assertEqual(3, caught.exception.exit_code)

    def test_what_a_spoiled_channel_brings_is_lost_with_a_warning(self):
        def run(channel):
            os.write(channel._results, b"\xff" * 1000)

        with self.assertLogs("sqstaskmaster._isolation.child", "WARNING"):
            child = self.finish(run)
        with self.assertRaises(TaskExited):
            child.result()

    def test_what_a_task_writes_to_its_stack_is_kept_only_in_part(self):
        def run(channel):
            for name in os.listdir("/proc/self/fd"):
                if int(name) >= 512:  # where ours are; below are those of the test runner
                    with contextlib.suppress(OSError):
                        os.write(int(name), b"x" * MIB)

        child = self.finish(run)
        with self.assertRaises(TaskExited):
            child.result()
        self.assertLessEqual(len(child.stack), MIB // 4)

    def test_a_task_that_has_told_its_end_and_does_not_end_is_killed(self):
        class Stuck:
            def flush(self):
                signal.pause()

        def run(channel):
            sys.stdout = Stuck()
            return "told"

        with mock.patch.object(task, "_LAST_SECONDS", 0.05):
            self.assertEqual("told", self.finish(run).result())


class ForksWhenLoaded:
    """A task whose unpickling forks a child, which falls out of it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return _fork_and_load, (self.path,)

    def __call__(self, channel):
        with open(self.path, "a") as file:
            file.write("ran\n")


def _fork_and_load(path):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return ForksWhenLoaded(path)


class KeeperTest(Case):
    def test_a_task_that_stops_its_keeper_in_a_loop_is_killed(self):
        def run(channel):
            keeper = os.getppid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            channel.report({"stopping": "it"})
            while True:
                os.kill(keeper, signal.SIGSTOP)

        child = self.start(run, term_grace=0.1)
        self.attend_until(child, lambda: child.progress)
        child.stop()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        self.assertFalse(alive(child.pid))

    def test_a_task_whose_keeper_never_gets_to_act_is_killed_past_it(self):
        def run(channel):
            os.kill(os.getppid(), signal.SIGSTOP)
            channel.report({"stopped": "the keeper"})
            while True:
                signal.pause()

        child = self.start(run, term_grace=0.01)
        self.attend_until(child, lambda: child.progress)
        wake = process_tree.wake

        def wake_in_vain(keeper, pidfd):
            # As if the task had stopped the keeper again, each time, for as long as it lives.
            return True if alive(child.pid) else wake(keeper, pidfd)

        with mock.patch.object(process_tree, "wake", wake_in_vain):
            child.stop()
            wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        self.assertFalse(alive(child.pid))

    def test_a_keeper_that_hangs_in_what_runs_at_a_fork_does_not_hold_the_worker(self):
        def in_keeper():
            if self.hangs and os.getppid() == worker:
                signal.pause()

        self.hangs, worker = True, os.getpid()
        self.addCleanup(setattr, self, "hangs", False)
        os.register_at_fork(after_in_child=in_keeper)
        child = self.start(lambda channel: None, term_grace=0.1)
        self.assertFalse(child.wait(0.1))
        child.stop()
        with mock.patch.object(task, "_HUNG_KEEPER_SECONDS", 0.5):
            self.assertTrue(child.wait(SOON_SECONDS))
        with self.assertRaises(TaskKilled):
            child.result()

    def test_a_worker_that_is_killed_takes_a_task_with_it_that_has_stopped_its_keeper(self):
        def run(channel):
            os.write(outlet, b"%d" % os.getpid())
            os.kill(os.getppid(), signal.SIGSTOP)
            signal.pause()

        inlet, outlet = os.pipe()
        self.addCleanup(os.close, inlet)
        worker = os.fork()
        if worker == 0:
            try:
                isolation.Child(run, name="T").start()
                signal.pause()
            finally:
                os._exit(1)
        os.close(outlet)
        pid = int(os.read(inlet, 20))
        keeper = process_tree._parent_of(pid)
        self.addCleanup(process_tree.kill, keeper, signal.SIGKILL)
        wait_until(lambda: process_tree._state_of(keeper) == b"T", "the keeper is stopped")
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        wait_until(lambda: not alive(pid), "the task is gone")

    def test_a_child_that_falls_out_of_the_loading_of_a_spawned_task_does_not_run_it_too(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "runs")
            self.finish(ForksWhenLoaded(path), start_method="spawn").result()
            with open(path) as file:
                self.assertEqual("ran\n", file.read())

    def test_a_daemon_ends_though_the_task_killed_the_keeper(self):
        def run(channel):
            channel.report({"daemon": daemonise()})
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()

        child = self.finish(run)
        with self.assertRaises(TaskKilled) as caught:
            child.result()
        self.assertIsNone(caught.exception.signal)
        self.assertTrue(child.progress["daemon"])
        self.assertFalse(alive(child.progress["daemon"]))

    def test_a_process_of_the_worker_s_own_is_not_taken_for_the_task_s(self):
        other = os.fork()
        if other == 0:
            os.setsid()
            signal.pause()
            os._exit(0)
        self.addCleanup(os.waitpid, other, 0)
        self.addCleanup(os.kill, other, signal.SIGKILL)
        self.finish(lambda channel: os.kill(os.getppid(), signal.SIGKILL))
        self.assertTrue(alive(other))

    def test_a_task_that_closed_what_its_end_is_told_through_prints_no_traceback_of_ours(self):
        def run(channel):
            os.dup2(error_file.fileno(), 2)
            os.close(channel._results)

        with tempfile.TemporaryFile() as error_file:
            child = self.finish(run)
            with self.assertRaises(TaskExited):
                child.result()
            error_file.seek(0)
            self.assertEqual(b"", error_file.read())

    def test_without_proc_a_daemon_does_not_hold_the_worker(self):
        daemon = []

        def run(channel):
            channel.report({"daemon": daemonise()})

        with (
            mock.patch.object(process_tree, "can_list", lambda: False),
            mock.patch.object(process_tree, "descendants", lambda pid: []),
            mock.patch.object(process_tree, "_BLIND_SECONDS", 0.05),
        ):
            child = self.finish(run)
        daemon.append(child.progress["daemon"])
        self.assertIsNone(child.result())
        os.kill(daemon[0], signal.SIGKILL)

    def test_a_fork_that_fails_in_the_keeper_is_told_as_what_it_is(self):
        fork, calls = os.fork, []

        def fork_once():
            calls.append(1)
            if len(calls) > 1:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return fork()

        with mock.patch.object(os, "fork", fork_once):
            child = self.finish(lambda channel: None)
        with self.assertRaisesRegex(TaskNotStarted, "Resource temporarily unavailable"):
            child.result()

    def test_starts_that_fail_leave_no_descriptor_open(self):
        before = open_descriptors()
        with mock.patch.object(os, "fork", side_effect=OSError(errno.EAGAIN, "no more processes")):
            with self.assertRaises(OSError):
                isolation.Child(lambda channel: None, name="T").start()
        self.assertEqual(set(), left_open(before))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for more in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 1 + more, hard))
            child = isolation.Child(lambda channel: None, name="T")
            try:
                child.start()
            except OSError as error:
                self.assertEqual(errno.EMFILE, error.errno)
            else:
                self.end(child)
            self.assertEqual(set(), left_open(before))

    def test_the_out_of_memory_killer_prefers_the_task(self):
        def run(channel):
            with open("/proc/self/oom_score_adj") as score:
                return int(score.read())

        self.assertEqual(1000, self.finish(run).result())


class UsageTest(Case):
    @classmethod
    def setUpClass(cls):
        cls.held = bytearray(os.urandom(MIB)) * 100

    @classmethod
    def tearDownClass(cls):
        del cls.held

    def peak(self, function):
        child = self.finish(function)
        child.result()
        return child.usage.peak_memory / MIB

    def peak_once_past(self, mib, function):
        """Of a task that is told to stop once it, and all that it started, were seen to hold so much."""
        child = self.start(function)
        self.attend_until(child, lambda: child.usage.peak_memory > mib * MIB)
        child.task.tell_stopping()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        return child.usage.peak_memory / MIB

    def test_a_no_op_has_used_next_to_nothing_however_much_the_worker_holds(self):
        self.assertLess(self.peak(lambda channel: None), 10 if IS_MEASURED else 3)

    def test_what_max_memory_looks_at_is_what_the_peak_is_of(self):
        """What this process holds is in neither; what the task takes in both, in one process of its or several."""

        def run(mib, forks):
            def task(channel):
                held = bytearray(os.urandom(MIB)) * mib
                pids = [os.fork() for _ in range(forks)] if forks else []
                if 0 in pids:
                    signal.pause()
                channel.report({"ready": True})
                channel._notice.poll()
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                return len(held)

            return task

        for mib, forks in ((0, 0), (0, 1), (60, 0), (60, 1)):
            with self.subTest(mib=mib, forks=forks):
                child = self.start(run(mib, forks))
                self.attend_until(child, lambda: child.progress)
                looked_at = child.memory(0)
                self.attend_until(child, lambda: child.usage.peak_memory > mib * MIB * 0.9 or not mib)
                child.task.tell_stopping()
                wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
                self.assertAlmostEqual(mib, looked_at / MIB, delta=12)
                self.assertAlmostEqual(mib, child.usage.peak_memory / MIB, delta=12)

    def test_what_a_task_held_is_its_peak(self):
        def run(channel):
            held = bytearray(os.urandom(MIB)) * 150
            del held

        self.assertAlmostEqual(150, self.peak(run), delta=15)

    def test_a_program_that_the_task_runs_counts_as_a_whole(self):
        def run(channel):
            code = "import os, time; held = bytearray(os.urandom(1 << 20)) * 150; time.sleep(3600)"
            program = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", code])
            channel._notice.poll()
            os.kill(program, signal.SIGKILL)

        self.assertAlmostEqual(155, self.peak_once_past(140, run), delta=25)

    def test_processes_that_run_together_count_together(self):
        def run(channel):
            held = bytearray(os.urandom(MIB)) * 40
            for _ in range(2):
                if os.fork() == 0:
                    more = bytearray(os.urandom(MIB)) * 40
                    channel._notice.poll()
                    os._exit(len(more) and 0)
            channel._notice.poll()
            for _ in range(2):
                os.wait()
            return len(held)

        self.assertAlmostEqual(120, self.peak_once_past(100, run), delta=20)

    def test_cpu_seconds_are_those_of_all_its_processes(self):
        def burn():
            until = time.process_time() + 0.1
            while time.process_time() < until:
                pass

        def run(channel):
            if os.fork() == 0:
                burn()
                os._exit(0)
            os.wait()
            daemon = os.fork()
            if daemon == 0:
                os.setsid()
                burn()
                channel._notice.poll()  # never reaped by the task
            burn()
            select.select([], [], [], 0.2)

        self.assertGreaterEqual(self.finish(run).usage.cpu_seconds, 0.29)

    def test_what_a_running_task_uses_is_known_as_of_now(self):
        def run(channel):
            held = bytearray(os.urandom(MIB)) * 50
            pid = os.fork()
            if pid == 0:
                while True:
                    pass
            channel._notice.poll()
            os.kill(pid, signal.SIGKILL)
            return len(held)

        child = self.start(run)
        self.attend_until(child, lambda: child.usage.cpu_seconds > 0.1 and child.usage.peak_memory > 45 * MIB)
        child.task.tell_stopping()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        self.assertGreater(child.usage.cpu_seconds, 0.1)

    def test_a_task_that_was_killed_has_used_what_it_used(self):
        def run(channel):
            held = bytearray(os.urandom(MIB)) * 50
            os.kill(os.getpid(), signal.SIGKILL)
            return held

        child = self.finish(run)
        self.assertAlmostEqual(50, child.usage.peak_memory / MIB, delta=10)
        self.assertGreater(child.usage.cpu_seconds, 0)


class NoticeTest(Case):
    def test_a_task_can_ask_whether_the_worker_is_stopping(self):
        def run(channel):
            before = channel.stopping
            channel.report({"asked": True})
            channel._notice.poll()
            return before, channel.stopping, channel.stopping

        child = self.start(run)
        self.attend_until(child, lambda: child.progress)
        child.task.tell_stopping()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        self.assertEqual((False, True, True), child.result())

    def test_a_task_that_is_stopped_is_told_so_too(self):
        def run(channel):
            try:
                channel.report({"asked": channel.stopping})
                while True:  # the signal that asks for the stack wakes it too
                    signal.pause()
            except SystemExit:
                return channel.stopping

        child = self.start(run)
        self.attend_until(child, lambda: child.progress)
        child.stop()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        self.assertIs(True, child.result())

    def test_in_the_task_s_process_the_channel_is_the_current_one(self):
        from sqstaskmaster._isolation import channel as module

        self.assertIsNone(module.current)
        self.assertIs(True, self.finish(lambda channel: channel is module.current).result())


class StackTest(Case):
    def test_a_task_tells_where_it_is_and_goes_on(self):
        def hold_the_interpreter(channel):
            channel.report({"holding": True})
            ctypes.PyDLL(None).usleep(300_000)
            return "done"

        child = self.start(hold_the_interpreter)
        self.attend_until(child, lambda: child.progress)
        self.assertTrue(child.task.ask_stack())
        self.attend_until(child, lambda: "in hold_the_interpreter" in child.stack)
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        self.assertEqual("done", child.result())

    def test_a_task_that_has_become_another_program_is_not_asked(self):
        child = self.start(lambda channel: os.execvp("sleep", ["sleep", "3600"]))
        self.attend_until(child, lambda: child.pid and program(child.pid) == "sleep")
        self.assertFalse(child.task.ask_stack())
        child.stop()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        with self.assertRaises(TaskKilled) as caught:
            child.result()
        self.assertEqual(signal.SIGTERM, caught.exception.signal)

    def test_a_task_that_is_stopped_before_its_keeper_has_told_its_pid_tells_where_it_was(self):
        def hangs(channel):
            channel.report({"hangs": True})
            time.sleep(3600)

        child = self.start(hangs)
        self.attend_until(child, lambda: child.progress and child.pid)
        child.task._news.pid = None
        child.stop()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        self.assertIn("in hangs", child.stack)

    def test_a_task_that_is_gone_is_not_asked(self):
        self.assertFalse(self.finish(lambda channel: None).task.ask_stack())


def program(pid):
    with open(f"/proc/{pid}/comm") as name:
        return name.read().strip()


class ScheduleTest(unittest.TestCase):
    def test_a_hundred_tasks_that_sleep_are_looked_at_ten_times_a_second_in_all(self):
        from sqstaskmaster._isolation.usage import Meter

        meter, now, looks = Meter(0.0, keeper=1), 0.0, 0
        meter.inherited = 0
        with mock.patch.object(process_tree, "own_memory", return_value=0):
            while now < 3600:
                now = meter.next_look_at
                meter.look(now)
                looks += 1
        self.assertLess(looks, 3600 / 10 + 100)


if __name__ == "__main__":
    unittest.main()
