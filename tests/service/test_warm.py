"""Processes that stay: what spoils one and what does not, and messages wait for an initializer in the queue only."""

import _thread
import collections
import contextlib
import ctypes
import functools
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import warnings
from unittest import mock

from botocore.exceptions import ClientError

from sqstaskmaster import (
    InitializerFailed,
    LocalMessage,
    LocalQueue,
    ProcessMessageHandler,
    TaskManager,
    TaskNotPicklable,
    UnsupportedContext,
    Worker,
)
from sqstaskmaster._isolation import spoiling
from sqstaskmaster._service import intake, registry, status, warming
from tests.support import Script, ServerTestCase, wait_until
from tests.support.endings import Stopping

MIB = 2**20

_A_FILE = os.path.abspath(__file__)


class Model:
    """What the initializer leaves behind for tasks."""

    loaded = cache = helper = connection = far_end = file = None


def load():
    Model.loaded = os.getpid()
    Model.helper = subprocess.Popen(["sleep", "600"])
    Model.connection, Model.far_end = socket.socketpair()
    Model.file = open(_A_FILE)
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def do(path, seconds, kind=None, name=None):
    """The task: writes down which process it has, and whose initializer was run."""
    with open(path, "a") as seen:
        seen.write(json.dumps([os.getpid(), Model.loaded, kind and name]) + "\n")
    if kind:
        getattr(globals()[kind], name)()
    else:
        time.sleep(seconds)


def need(module):
    return __import__(module)


class Unimportable:
    """Has its module imported where it is unpickled."""

    def __call__(self):
        raise AssertionError("it is there")

    def __reduce__(self):
        return need, ("sqstaskmaster_tests_no_such_module",)


class Initializers:
    """Of module level, for a fresh interpreter to find. `path` is a file for what they tell."""

    def raises():
        raise LookupError("no model of that name")

    def ends_its_process():
        os._exit(0)

    def hangs():
        threading.Event().wait()

    def is_slow(path):
        time.sleep(2)
        with open(path, "w") as file:
            file.write(repr(time.monotonic()))

    def is_slow_the_second_time(path):
        began = f"{path}.first"
        if os.path.exists(began):
            Initializers.is_slow(path)
        open(began, "w").close()

    def fails_once(path):
        if not os.path.exists(path):
            open(path, "w").close()
            raise OSError("not yet")

    def hangs_in_one(path):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            threading.Event().wait()


class Spoiling:
    """What a task can do to the process that the next one would have."""

    def raises():
        raise ValueError("out of luck")

    def is_killed():
        os.kill(os.getpid(), signal.SIGKILL)

    def crashes():
        ctypes.string_at(0)

    def hangs_in_c():
        sum(range(10**12))

    def leaves_a_daemon_thread():
        threading.Thread(target=threading.Event().wait, daemon=True).start()

    def leaves_a_thread_below_threading():
        began, ends = threading.Event(), threading.Event()
        _thread.start_new_thread(lambda: (began.set(), ends.wait()), ())
        began.wait()

    def leaves_a_pool():
        from concurrent.futures import ThreadPoolExecutor

        Model.cache = ThreadPoolExecutor()
        Model.cache.submit(len, ())

    def changes_its_folder():
        os.chdir("/")

    def changes_its_umask():
        os.umask(0o007)

    def changes_its_environment():
        os.environ["CUDA_VISIBLE_DEVICES"] = "7"

    def blocks_sigterm():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def ignores_sigterm():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def lowers_a_limit():
        resource.setrlimit(resource.RLIMIT_AS, (2**36, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def leaves_200_descriptors():
        Model.cache = [os.open(_A_FILE, os.O_RDONLY) for _ in range(200)]

    def leaves_a_file_open():
        Model.cache = tempfile.TemporaryFile("w")
        Model.cache.write("a line")

    def leaves_9_sockets():
        Model.cache = [socket.socket() for _ in range(9)]

    def closes_descriptors():
        os.closerange(3, 100)

    def puts_another_file_in_place_of_one():
        os.dup2(0, Model.file.fileno())

    def keeps_500_mb():
        Model.cache = b"x" * (500 * MIB)

    def leaves_a_child():
        subprocess.Popen(["sleep", "600"])

    def leaves_a_daemon():
        subprocess.run(["sh", "-c", "sleep 600 & exit"], start_new_session=True)

    def sets_a_timer():
        signal.setitimer(signal.ITIMER_REAL, 1)

    def ends_the_helper():
        Model.helper.kill()
        Model.helper.wait()


class Harmless:
    """What it may do."""

    def nothing():
        pass

    def uses_blas():
        import numpy  # noqa: F401  # whose pool of threads stays

        numpy.ones((300, 300)) @ numpy.ones((300, 300))

    def fills_a_cache():
        Model.cache = b"x" * MIB

    def uses_the_connection():
        Model.connection.send(b"question")
        Model.far_end.recv(100)

    def writes_to_the_file():
        Model.file.write("a line\n")

    def opens_connections():
        Model.cache = [socket.socket() for _ in range(8)]

    def makes_a_logger():
        logging.getLogger("tests.harmless").addHandler(logging.NullHandler())

    def filters_warnings():
        warnings.simplefilter("ignore")

    def waits_for_a_thread():
        threading.Thread(target=time.sleep, args=(0.2,)).start()

    def waits_for_a_child():
        import multiprocessing

        multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.2,)).start()

    def runs_a_program():
        subprocess.run(["true"], check=True)

    def uses_pools():
        import multiprocessing
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor() as pool:
            pool.submit(len, ()).result()
        multiprocessing.get_context("fork").Pool(1).map(abs, [1])


@unittest.skipUnless(sys.platform == "linux", "processes that stay need Linux")
class WarmTestCase(unittest.TestCase):
    start_method = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "seen")
        self.queue = LocalQueue(self.id())
        self.manager = TaskManager(self.queue.url, queue_constructor=lambda url: self.queue)

    def worker(self, initializer=load, **settings):
        settings = {"wait_time": 0, "max_tasks_per_child": None, "max_growth": 100 * MIB, **settings}
        worker = Worker(self.manager, initializer=initializer, **settings)
        worker.task("Do", hard_timeout=3, term_grace=0.5, start_method=self.start_method)(do)
        return worker

    def submit(self, kind=None, name=None, seconds=0):
        self.manager.submit("Do", path=self.path, seconds=seconds, kind=kind, name=name)

    def seen(self):
        if not os.path.exists(self.path):
            return []
        with open(self.path) as lines:
            return [json.loads(line) for line in lines if line.endswith("\n")]

    def run_worker(self, worker):
        with self.assertLogs("sqstaskmaster", "INFO") as logs:
            counts = dict(worker.run(burst=True))
        self.logs = logs
        return counts

    def replaced(self):
        records = [record for record in self.logs.records if getattr(record, "action", "") == "process_replaced"]
        return [(record.tasks, record.reason) for record in records]


class SpoilsEachKind:
    """A process that a task has spoiled has no other task, and the next one finds what the initializer has loaded."""

    def spoils(self, name, why, outcome="done"):
        self.submit()
        self.submit("Spoiling", name)
        self.submit()
        counts = self.run_worker(self.worker())
        self.assertEqual({"done": 3} if outcome == "done" else {"done": 2, outcome: 1}, counts, self.logs.output)
        [before, itself, after] = self.seen()
        self.assertEqual(before[:2], itself[:2])
        self.assertNotEqual(itself[0], after[0])
        self.assertEqual(after[0], after[1])
        [(tasks, reason)] = self.replaced()
        self.assertEqual(2, tasks)
        self.assertRegex(reason, why)
        self.assertFalse(os.path.exists(f"/proc/{itself[0]}"))

    def test_it_raises(self):
        self.spoils("raises", "did not end well", "failed")

    def test_a_segmentation_fault(self):
        self.spoils("crashes", "did not end well", "failed")

    def test_its_limit_in_c_code(self):
        self.spoils("hangs_in_c", "did not end well", "timed out")

    def test_a_daemon_thread_left(self):
        self.spoils("leaves_a_daemon_thread", "a thread")

    def test_another_environment(self):
        self.spoils("changes_its_environment", "environment")

    def test_200_descriptors_left_open(self):
        self.spoils("leaves_200_descriptors", "200 descriptors open")

    def test_500_mb_kept(self):
        self.spoils("keeps_500_mb", "has grown by 52")

    def test_a_child_left(self):
        self.spoils("leaves_a_child", "left 1 process behind")

    def test_the_death_of_the_initializers_helper(self):
        self.spoils("ends_the_helper", "that the initializer had started has ended")

    def test_killed_while_idle(self):
        def finished(_):
            if len(self.seen()) == 1:
                os.kill(self.seen()[0][0], signal.SIGKILL)
                wait_until(self.replaced, "its end is known")
                self.submit()
            else:
                os.kill(os.getpid(), signal.SIGTERM)

        self.submit()
        with self.assertLogs("sqstaskmaster", "INFO") as self.logs:
            counts = dict(self.worker(on_finish=finished).run())
        self.assertEqual(2, counts["done"])
        [first, second] = self.seen()
        self.assertNotEqual(first[0], second[0])
        self.assertEqual([(1, "it was killed, or ended, while it was idle")], self.replaced())


class SpoilingTest(SpoilsEachKind, WarmTestCase):
    """And what is the same for a forked process and for a fresh interpreter."""

    def test_sigkill(self):
        self.spoils("is_killed", "did not end well", "failed")

    def test_a_pool_of_threads_left(self):
        self.spoils("leaves_a_pool", "threads of a ThreadPoolExecutor")

    def test_a_thread_left_that_threading_does_not_know(self):
        self.spoils("leaves_a_thread_below_threading", "a thread")

    def test_another_working_directory(self):
        self.spoils("changes_its_folder", "working directory")

    def test_another_umask(self):
        self.spoils("changes_its_umask", "umask")

    def test_sigterm_blocked(self):
        self.spoils("blocks_sigterm", "signal mask")

    def test_sigterm_ignored(self):
        self.spoils("ignores_sigterm", "signal handlers")

    def test_another_resource_limit(self):
        self.spoils("lowers_a_limit", "resource limits")

    def test_nine_sockets_left_open(self):
        self.spoils("leaves_9_sockets", "9 descriptors open, 9 of them sockets")

    def test_descriptors_closed(self):
        self.spoils("closes_descriptors", "closed .* descriptors")

    def test_another_file_in_place_of_one(self):
        self.spoils("puts_another_file_in_place_of_one", "open on something else")

    def test_a_daemon_left(self):
        self.spoils("leaves_a_daemon", "left 1 process behind")

    def test_a_timer_that_rings_in_the_next_task(self):
        self.spoils("sets_a_timer", "timers")

    def test_a_lost_claim_though_the_task_goes_on_and_is_done(self):
        def lost(message, **_):
            raise ClientError({"Error": {"Code": "ReceiptHandleIsInvalid"}}, "ChangeMessageVisibility")

        times = {"alarm_timeout": 0.5, "sqs_timeout": 30, "on_claim_lost": "continue"}
        for _ in range(2):
            self.submit(seconds=1.5)
        with mock.patch.object(LocalMessage, "change_visibility", lost):
            self.run_worker(self.worker(**times))
        self.assertEqual(2, len({pid for pid, _, _ in self.seen()}))
        self.assertIn("its claim was lost", {reason for _, reason in self.replaced()})

    def test_a_message_is_deleted_while_the_process_is_looked_at_and_its_slot_is_not_free_before(self):
        deleted, looked = f"{self.path}.deleted", f"{self.path}.looked"
        spoiled, delete, events = spoiling.Snapshot.spoiled, LocalMessage.delete, []

        def looks(snapshot):
            if self.seen():  # else it is the initializer's
                wait_until(lambda: os.path.exists(deleted), "the first message is deleted")
                time.sleep(0.3)  # for what would be received too early
                open(looked, "w").close()
            return spoiled(snapshot)

        def deletes(message):
            events.append(("deleted", os.path.exists(looked), len(self.queue.received)))
            open(deleted, "w").close()
            return delete(message)

        def finished(_):
            events.append(("finished", os.path.exists(looked)))

        self.queue.received, receive = [], self.queue.receive_messages

        def receives(**arguments):
            found = receive(**arguments)
            self.queue.received += found
            return found

        self.queue.receive_messages = receives
        for _ in range(2):
            self.submit()
        with mock.patch.object(spoiling.Snapshot, "spoiled", looks):
            with mock.patch.object(LocalMessage, "delete", deletes):
                self.assertEqual({"done": 2}, self.run_worker(self.worker(on_finish=finished)))
        self.assertEqual([("deleted", False, 1), ("finished", True)], events[:2])
        self.assertEqual([], self.replaced())

    def test_a_file_that_a_task_left_open_and_wrote_to_is_whole_and_retires_its_process(self):
        self.submit("Spoiling", "leaves_a_file_open")
        self.submit()
        self.assertEqual({"done": 2}, self.run_worker(self.worker()))
        self.assertEqual([(1, "it left files open that it wrote to")], self.replaced())

    def test_a_stack_that_is_asked_for_spoils_nothing(self):
        self.submit(seconds=1)
        self.submit(seconds=1)
        asking = Stopping(self, self.seen, "the task runs", lambda: status.ask(stacks=True))
        self.run_worker(self.worker())
        asking.end()
        self.assertEqual([], self.replaced())


class SpawnedSpoilingTest(SpoilsEachKind, WarmTestCase):
    start_method = "spawn"


class HarmlessTest(WarmTestCase):
    """What a task may leave behind, or is waited for: the next one has its process."""

    def is_harmless(self, name):
        for _ in range(3):
            self.submit("Harmless", name)
        self.submit()
        self.assertEqual({"done": 4}, self.run_worker(self.worker()))
        self.assertEqual([], self.replaced())
        self.assertEqual(1, len({pid for pid, _, _ in self.seen()}))


for _name in [name for name in vars(Harmless) if not name.startswith("_") and name != "writes_to_the_file"]:
    setattr(HarmlessTest, f"test_{_name}", functools.partialmethod(HarmlessTest.is_harmless, _name))


class ReadyForEachKind:
    """No message is received for a process in which the initializer has not returned."""

    hangs_for = 1.0  # it is there by then, however busy the machine is

    def setUp(self):
        super().setUp()
        self.received = []
        for _ in range(3):
            self.submit()

    def worker(self, initializer, **settings):
        receive = self.queue.receive_messages

        def counted(**arguments):
            found = receive(**arguments)
            self.received += [(time.monotonic(), arguments["MaxNumberOfMessages"])] * len(found)
            return found

        self.queue.receive_messages = counted
        return super().worker(initializer, **settings)

    def fails(self, error):
        with self.assertLogs("sqstaskmaster", "INFO") as self.logs, self.assertRaises(error) as raised:
            self.initialized.run()
        self.assertEqual([], self.received)
        self.assertEqual([], self.seen())
        return raised.exception

    def errors(self):
        records = [record for record in self.logs.records if getattr(record, "action", "") == "initializer_failed"]
        return [logging.Formatter().format(record) for record in records]

    def test_an_initializer_that_raises_ends_the_worker_with_its_traceback_and_nothing_was_received(self):
        self.initialized = self.worker(Initializers.raises)
        error = self.fails(InitializerFailed)
        self.assertIsInstance(error.__cause__, LookupError)
        self.assertEqual(warming._MOST_FAILURES, len(self.errors()))
        self.assertIn('raise LookupError("no model of that name")', self.errors()[0])

    def test_where_it_hangs_is_told(self):
        self.initialized = self.worker(Initializers.hangs, initializer_timeout=self.hangs_for)
        with mock.patch.object(warming, "_MOST_FAILURES", 1):
            self.fails(InitializerFailed)
        self.assertRegex(self.errors()[0], r"in hangs\n *threading.Event\(\).wait\(\)")

    def test_a_slow_initializer_is_waited_for_while_the_worker_is_alive(self):
        path, told = f"{self.path}.returns", []
        worker = self.worker(functools.partial(Initializers.is_slow, path))
        with mock.patch.object(intake, "_ALIVE_SECONDS", 0.1), self.assertLogs("sqstaskmaster", "INFO"):
            counts = worker.run(burst=True, on_event=lambda event: told.append((event, bool(self.received))))
        self.assertEqual({"done": 3}, dict(counts))
        with open(path) as file:
            self.assertGreater(self.received[0][0], float(file.read()))
        self.assertIn(("polled", False), told)
        self.assertEqual(1, [event for event, _ in told].count("ready"))

    def test_an_initializer_that_fails_once_is_tried_again_and_the_tasks_run(self):
        fails_once = functools.partial(Initializers.fails_once, f"{self.path}.failed")
        self.assertEqual({"done": 3}, self.run_worker(self.worker(fails_once)))
        self.assertEqual(1, len(self.errors()))

    def test_no_more_is_asked_for_than_slots_are_ready(self):
        """Of two slots one has a process whose initializer hangs: messages come one by one, and all run."""
        hangs_in_one = functools.partial(Initializers.hangs_in_one, f"{self.path}.first")
        self.assertEqual({"done": 3}, self.run_worker(self.worker(hangs_in_one, slots=2)))
        self.assertEqual({1}, {most for _, most in self.received})

    def test_the_second_process_of_a_slot_has_no_message_before_it_is_ready_either(self):
        path = f"{self.path}.second"
        worker = self.worker(functools.partial(Initializers.is_slow_the_second_time, path), max_tasks_per_child=2)
        self.assertEqual({"done": 3}, self.run_worker(worker))
        with open(path) as file:
            self.assertGreater(self.received[2][0], float(file.read()))
        self.assertEqual(2, len([at for at, _ in self.received if at < self.received[2][0]]))

    def test_each_process_runs_its_initializer_and_so_many_tasks(self):
        self.assertEqual({"done": 3}, self.run_worker(self.worker(load, max_tasks_per_child=2)))
        self.assertEqual([2, 1], sorted(collections.Counter(pid for pid, _, _ in self.seen()).values())[::-1])
        self.assertEqual([(2, "max_tasks_per_child")], self.replaced())


BESIDE = """
import os, sys, threading
from sqstaskmaster import InitializerFailed, TaskManager, Worker

url, kind = sys.argv[1:]

class Counting(TaskManager):
    def receive(self, *args, **kwargs):
        found = super().receive(*args, **kwargs)
        received.extend(found)
        return found

def initialize():
    os.write(1, b"began\\n")
    if kind == "raises":
        raise LookupError("no model of that name")
    if kind == "hangs":
        threading.Event().wait()

received, done = [], []
worker = Worker(Counting(url), wait_time=1, initializer=initialize, max_tasks_per_child=None, on_finish=done.append)

@worker.task("Do")
def do():
    pass

if __name__ == "__main__":
    try:
        worker.run(burst=kind == "healthy")
    except InitializerFailed:
        print("not ready")
    print("received", len(received), "done", len(done))
"""


@unittest.skipUnless(sys.platform == "linux", "processes that stay need Linux")
class BesideAHealthyWorkerTest(ServerTestCase):
    def test_a_worker_that_does_not_get_ready_leaves_every_message_to_one_that_does(self):
        url = self.create_queue()
        manager = TaskManager(url)
        for _ in range(20):
            manager.submit("Do")
        sick = [Script(self, BESIDE, url, kind) for kind in ("raises", "hangs")]
        for script in sick:
            script.wait_for("began")
        healthy = Script(self, BESIDE, url, "healthy")
        healthy.wait_for("received 20 done 20")
        raises, hangs = sick
        raises.wait_for("not ready")
        hangs.end(signal.SIGTERM)
        for script in sick:
            script.wait_for("received 0 done 0")


class ReadyBeforeClaimedTest(ReadyForEachKind, WarmTestCase):
    def test_one_that_ends_its_process_is_a_failure(self):
        self.initialized = self.worker(Initializers.ends_its_process)
        self.fails(InitializerFailed)
        self.assertIn("TaskExited", self.errors()[0])

    def test_an_initializer_that_hangs_is_ended_with_its_stack_in_the_log(self):
        self.initialized = self.worker(functools.partial(sum, range(10**12)), initializer_timeout=0.2)
        with mock.patch.object(warming, "_TERM_GRACE_SECONDS", 0.2):
            self.fails(InitializerFailed)
        self.assertIn("initializer_timeout", self.errors()[0])

    def test_a_worker_that_is_stopped_waits_for_no_initializer(self):
        path = f"{self.path}.begun"
        worker = self.worker(functools.partial(Initializers.hangs_in_one, path), slots=2)
        Stopping(self, lambda: os.path.exists(path), "the initializer runs")
        began = time.monotonic()
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({}, dict(worker.run()))
        self.assertLess(time.monotonic() - began, 15)
        self.assertEqual([], self.received)

    def test_with_an_initializer_alone_each_task_has_its_own_process(self):
        self.assertEqual({"done": 3}, self.run_worker(self.worker(load, max_tasks_per_child=1)))
        self.assertEqual(3, len({pid for pid, _, _ in self.seen()}))
        self.assertTrue(all(pid == loaded for pid, loaded, _ in self.seen()))

    def test_without_an_initializer_a_process_may_stay(self):
        self.assertEqual({"done": 3}, self.run_worker(self.worker(None)))
        self.assertEqual(1, len({pid for pid, _, _ in self.seen()}))

    def test_a_file_that_the_initializer_opened_is_there_for_tasks_to_write_to(self):
        def opens():
            Model.file = open(f"{path}.log", "a")

        path = self.path
        for _ in range(2):
            self.submit("Harmless", "writes_to_the_file")
        self.assertEqual({"done": 5}, self.run_worker(self.worker(opens)))
        self.assertEqual([], self.replaced())
        with open(f"{path}.log") as log:
            self.assertEqual("a line\n" * 2, log.read())

    def test_start_methods_that_are_not_the_same_for_all_tasks_are_refused(self):
        for methods in (("fork", "spawn"), ("forkserver",)):
            worker = Worker(self.manager, initializer=load)
            for name in methods:
                worker.task(name, start_method=name)(do)
            with self.subTest(methods), self.assertRaisesRegex(UnsupportedContext, "give all of them the same"):
                worker.run(burst=True)

    def test_a_handler_that_chooses_another_start_method_than_its_worker_knows_of_is_refused(self):
        class Unseen(ProcessMessageHandler):
            def __init__(self, message, **timeouts):
                super().__init__(message, start_method="spawn", **timeouts)

            def run(self):
                raise AssertionError("it runs")

        worker = self.worker(None)
        worker._registry.add("Unseen", registry.of_class("Unseen", Unseen, worker._timeouts()))
        self.manager.submit("Unseen")
        self.assertEqual({"done": 3, "refused": 1}, self.run_worker(worker))

    def test_an_initializer_that_cannot_be_sent_to_a_fresh_interpreter_is_refused(self):
        self.start_method = "spawn"
        with self.assertRaisesRegex(TaskNotPicklable, "The initializer cannot be sent .* by 'spawn'"):
            self.worker(lambda: None).run(burst=True)

    def test_settings_out_of_their_range_are_refused_by_name(self):
        for settings in (
            {"max_tasks_per_child": 0},
            {"max_tasks_per_child": 1.5},
            {"initializer_timeout": 0},
            {"initializer_timeout": float("nan")},
            {"max_growth": -1},
            {"max_growth": 1.5},
        ):
            with self.subTest(**settings), self.assertRaisesRegex(ValueError, next(iter(settings))):
                Worker(self.manager, **settings)
        with self.assertRaisesRegex(TypeError, "initializer must be callable"):
            Worker(self.manager, initializer="load")


class SpawnedReadyBeforeClaimedTest(ReadyForEachKind, WarmTestCase):
    start_method = "spawn"
    hangs_for = 12.0  # a fresh interpreter imports the worker's modules first

    def setUp(self):
        super().setUp()
        most = mock.patch.object(warming, "_MOST_FAILURES", 2)
        most.start()
        self.addCleanup(most.stop)

    def test_a_module_that_cannot_be_imported_there_is_a_failure_that_shows_why(self):
        self.initialized = self.worker(Unimportable())
        self.fails(InitializerFailed)
        self.assertIn("No module named 'sqstaskmaster_tests_no_such_module'", self.errors()[0])


def hold_300_mib():
    Model.cache = b"x" * (300 * MIB)
    ends = time.process_time() + 1.5
    while time.process_time() < ends:
        pass
    load()


def hold(mib, seconds, child):
    began = time.process_time()
    held = b"x" * (mib * MIB)
    ends = began + seconds
    while time.process_time() < ends:
        pass
    if child:
        subprocess.run([sys.executable, "-c", f"import time; x = b'x' * ({mib} * 2**20); time.sleep(2)"])
    time.sleep(0.6)
    del held


class TriedAgainTest(unittest.TestCase):
    def test_an_initializer_is_tried_again_by_the_keeper_that_its_slot_has_then(self):
        world, idle = mock.Mock(**{"now.return_value": 0.0}), []
        keeper = mock.Mock(alive=True, **{"begin.side_effect": OSError("no descriptor left")})
        settings = warming.WarmSettings(warming.Warm(), None, 20.0)
        processes = warming.Warming(world, settings, 1, idle.append, mock.Mock())
        processes.begin(0, keeper)
        keeper.alive = False  # it ends before the next try
        (again, try_again), _ = world.at.call_args
        world.now.return_value = again
        try_again()
        self.assertEqual([0], idle)


class FiguresTest(WarmTestCase):
    """CPU, peak and limit of a task are its own, though the process is older, and holds what the initializer loaded."""

    def run_tasks(self, *tasks, **settings):
        finished = []
        worker = Worker(
            self.manager,
            initializer=hold_300_mib,
            max_tasks_per_child=None,
            wait_time=0,
            on_finish=finished.append,
        )

        worker.task("Hold", start_method=self.start_method, **settings)(hold)
        for task in tasks:
            self.manager.submit("Hold", **{"mib": 0, "seconds": 0, "child": False, **task})
        self.run_worker(worker)
        return finished

    def test_cpu_seconds_and_peak_are_the_tasks_own(self):
        big, small = self.run_tasks({"mib": 100, "seconds": 0.3}, {})
        self.assertEqual([], self.replaced())
        # What the system adds for the memory itself depends on the machine; the initializer's 1.5 s would show.
        self.assertGreater(big.cpu_seconds, 0.25)
        self.assertLess(big.cpu_seconds, 1.2)
        self.assertAlmostEqual(100, big.peak_memory / MIB, delta=15)
        self.assertLess(small.cpu_seconds, 0.3)
        self.assertLess(small.peak_memory, 15 * MIB)

    def test_the_memory_limit_is_for_what_the_task_itself_holds(self):
        within, over = self.run_tasks({"mib": 100}, {"mib": 250}, max_memory=200 * MIB)
        self.assertEqual(["done", "failed"], [within.outcome, over.outcome])

    def test_in_a_fresh_interpreter_too(self):
        self.start_method = "spawn"
        tasks = {"mib": 100}, {"mib": 60, "child": True}, {"mib": 250}
        *within, over = self.run_tasks(*tasks, max_memory=200 * MIB)
        self.assertEqual(["done", "done", "failed"], [each.outcome for each in (*within, over)])
        self.assertAlmostEqual(100, within[0].peak_memory / MIB, delta=15)

    def test_the_memory_of_a_program_that_it_starts_counts_and_that_of_the_initializer_does_not(self):
        within, over = self.run_tasks({"mib": 60, "child": True}, {"mib": 150, "child": True}, max_memory=200 * MIB)
        self.assertEqual(["done", "failed"], [within.outcome, over.outcome])


if __name__ == "__main__":
    unittest.main()
