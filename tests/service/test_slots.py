"""The worker with slots: many tasks at once, one holder of all claims, and nobody who holds up another."""

import collections
import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

import boto3
from botocore.exceptions import ClientError, EndpointConnectionError

from sqstaskmaster import LocalQueue, MessageHandler, ProcessMessageHandler, TaskManager, Worker
from sqstaskmaster._claim import clock
from sqstaskmaster._isolation import process_tree
from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._service import settling
from sqstaskmaster._service.slot_pool import SlotPool
from sqstaskmaster._service.loop import Loop
from sqstaskmaster.errors import (
    ArgumentsDoNotFit,
    ClaimLapsed,
    HandlerStuck,
    HardTimeout,
    MalformedMessage,
    MemoryLimitExceeded,
    PollRefused,
    TaskKilled,
    UnknownTask,
)
from tests.guard import awake_seconds
from tests.support import DEADLINE_SECONDS, ServerTestCase, session, wait_until

LOST = ClientError({"Error": {"Code": "MessageNotInflight", "Message": "gone"}}, "ChangeMessageVisibility")
FAILURE = EndpointConnectionError(endpoint_url="http://sqs")


class Message:
    """A message that keeps what is asked of it; `on_change` may raise, or wait."""

    def __init__(self, message, on_change):
        self._message = message
        self.body, self.attributes, self.message_id = message.body, message.attributes, message.message_id
        self.message_attributes = message.message_attributes
        self.changes, self.deleted, self.on_change = [], False, on_change

    def change_visibility(self, *, VisibilityTimeout):
        self.changes.append(VisibilityTimeout)
        self.on_change(self, VisibilityTimeout)

    def delete(self):
        self.deleted = True


class SlotsTestCase(unittest.TestCase):
    """A worker over a queue in memory. The tasks are functions; what they leave behind are files in `self.folder`."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.notified, self.messages, self.asked = [], [], []
        self.claimed = 0
        case = self

        class Queue(LocalQueue):
            def receive_messages(self, **kwargs):
                case.asked.append(kwargs["MaxNumberOfMessages"])
                received = [Message(each, case.on_change) for each in super().receive_messages(**kwargs)]
                case.messages += received
                if not received:
                    time.sleep(0.002)  # as a request takes: the tests beside this one want the processor too
                return received

        self.manager = TaskManager(
            f"memory:{self.id()}",
            notify=lambda exception, context: self.notified.append((exception, context)),
            queue_constructor=Queue,
        )

    def on_change(self, message, seconds):
        pass

    def worker(self, slots=2, **settings):
        return Worker(self.manager, slots=slots, **{"wait_time": 0, **settings})

    def run_tasks(self, worker, *kwargs, task="T"):
        for each in kwargs:
            self.manager.submit(task, **each)
        return dict(worker.run(burst=True))

    def files(self):
        return sorted(path.name for path in self.folder.iterdir())

    def stop_when(self, condition, number=signal.SIGTERM):
        """Send this process a signal as soon as the condition holds."""

        def watch():
            wait_until(condition, "the time to stop has come")
            os.kill(os.getpid(), number)

        thread = threading.Thread(target=watch)
        thread.start()
        self.addCleanup(thread.join, DEADLINE_SECONDS)


def descriptors():
    """How many pipes, files in memory and pidfds this process has open. (Sockets are other tests' clients' too.)"""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(each.startswith(("pipe:", "/memfd:", "anon_inode:[pidfd]")) for each in found)


def wait_for(path):
    """In a task: wait until there is such a file."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise AssertionError(f"{path.name} did not come")
        time.sleep(0.005)


def meet(folder, number, name):
    """In a task: wait until so many have come."""
    Path(folder, name).touch()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(os.listdir(folder)) < number:
        if time.monotonic() > deadline:
            raise AssertionError("the others did not come")
        time.sleep(0.005)


class ManyAtOnceTest(SlotsTestCase):
    def test_as_many_tasks_run_at_once_as_there_are_slots(self):
        worker = self.worker(slots=4)

        @worker.task("T")
        def task(name):
            meet(self.folder, 4, name)

        self.assertEqual({"done": 4}, self.run_tasks(worker, *({"name": str(n)} for n in range(4))))
        self.assertEqual([True] * 4, [message.deleted for message in self.messages])

    def test_no_message_is_claimed_that_no_slot_is_free_for(self):
        worker = self.worker(slots=3)
        running = self.folder / "running"
        running.mkdir()

        @worker.task("T")
        def task(n):
            (running / str(n)).touch()
            assert len(list(running.iterdir())) <= 3
            time.sleep(0.02)
            (running / str(n)).unlink()

        held = []
        worker._on_finish = lambda finished: held.append(sum(not each.deleted for each in self.messages))
        self.assertEqual({"done": 20}, self.run_tasks(worker, *({"n": n} for n in range(20))))
        self.assertLessEqual(max(self.asked), 3)

    def test_while_no_slot_is_free_nobody_polls(self):
        worker = self.worker(slots=2, wait_time=1)

        @worker.task("T")
        def task(name):
            meet(self.folder, 2, name)
            time.sleep(0.3)

        self.run_tasks(worker, {"name": "a"}, {"name": "b"})
        # One or two to fill the slots, one or two that find nothing when they are free again.
        self.assertLessEqual(len(self.asked), 5)

    def test_the_worker_says_that_it_is_alive_while_every_slot_is_busy(self):
        worker, told = self.worker(slots=1, wait_time=1), []
        folder = self.folder

        @worker.task("T")
        def task():
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not (folder / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.01)

        def on_event(event):
            told.append(event)
            if len(told) >= 4:  # the first poll, and three more while its task waits
                (folder / "go").touch()

        self.manager.submit("T")
        with mock.patch("sqstaskmaster._service.intake._ALIVE_SECONDS", 0.02):
            self.assertEqual({"done": 1}, dict(worker.run(burst=True, on_event=on_event)))
        self.assertEqual({"polled"}, set(told))

    def test_a_function_gets_its_kwargs_and_a_handler_is_made_in_both_processes(self):
        made = []

        class Handler(ProcessMessageHandler):
            def __init__(self, message, folder, name, **timeouts):
                super().__init__(message, **timeouts)
                made.append(name)
                self.path = Path(folder, f"{name}-{os.getpid()}")
                self.path.touch()

            def run(self):
                assert self.path.exists()

        worker = Worker(self.manager, {"T": Handler}, slots=2, wait_time=0)
        counts = self.run_tasks(worker, {"folder": str(self.folder), "name": "x"})
        self.assertEqual({"done": 1}, counts)
        self.assertEqual(["x"], made, "once in the worker")
        self.assertEqual(2, len(self.files()), "and once in the task's process")

    def test_the_message_attributes_and_the_receive_count_reach_the_task(self):
        from sqstaskmaster._claim.current import current_task

        worker = self.worker()

        @worker.task("T")
        def task():
            now = current_task()
            text = f"{now.name} {now.receive_count} {now.message_attributes['service_name']['StringValue'][:7]}"
            (self.folder / text).touch()
            assert 14000 < now.seconds_left <= 14400 and not now.stopping

        self.assertEqual({"done": 1}, self.run_tasks(worker, {}))
        self.assertEqual(["T 1 Unknown"], self.files())

    def test_each_slot_has_the_environment_it_was_given(self):
        worker = self.worker(slots=[{"DEVICE": "0"}, {"DEVICE": "1"}])

        @worker.task("T")
        def task(name):
            meet(self.folder, 2, f"{name}-{os.environ['DEVICE']}")

        self.run_tasks(worker, {"name": "a"}, {"name": "b"})
        self.assertEqual({"0", "1"}, {name[-1] for name in self.files()})
        self.assertNotIn("DEVICE", os.environ)

    def test_what_cannot_run_in_slots_is_refused_where_the_worker_is_made(self):
        class Plain(MessageHandler):
            def run(self):
                pass

        class Entering(ProcessMessageHandler):
            def __enter__(self):
                return super().__enter__()

            def run(self):
                pass

        with self.assertRaisesRegex(TypeError, "'T' cannot run in a slot.*ProcessMessageHandler"):
            Worker(self.manager, {"T": Plain}, slots=2)
        with self.assertRaisesRegex(TypeError, "__enter__"):
            Worker(self.manager, {"T": Entering}, slots=2)
        for slots in (0, -1, 1001, "many", 1.5, [], [{"A": 1}], ["A=1"]):
            with self.subTest(slots), self.assertRaisesRegex(ValueError, "slots"):
                self.worker(slots=slots)

    def test_a_thousand_short_tasks_leave_neither_process_nor_descriptor(self):
        worker = self.worker(slots=4)

        @worker.task("T")
        def task():
            pass

        self.run_tasks(worker, {})
        before = descriptors()
        self.assertEqual({"done": 300}, self.run_tasks(worker, *[{}] * 300))
        self.assertEqual(before, descriptors())


class VerdictsTest(SlotsTestCase):
    def run_one(self, function, **settings):
        worker = self.worker(**settings.pop("worker", {}))
        worker.task("T", **settings)(function)
        counts = self.run_tasks(worker, {})
        (message,) = self.messages
        return counts, message

    def test_what_a_task_raises_is_notified_with_its_facts_and_the_message_is_kept(self):
        def task():
            raise KeyError("why")

        counts, message = self.run_one(task)
        self.assertEqual({"failed": 1}, counts)
        self.assertFalse(message.deleted)
        ((error, context),) = self.notified
        self.assertIsInstance(error, KeyError)
        self.assertEqual(
            (message.body, "T", message.message_id, 1, self.manager.url, "failed"),
            tuple(context[name] for name in ("body", "task", "message_id", "receive_count", "queue", "outcome")),
        )
        self.assertGreater(context["cpu_seconds"], 0)
        self.assertGreaterEqual(context["peak_memory"], 0)

    def test_what_is_refused_and_what_is_no_task_is_notified_with_what_is_known_of_it(self):
        worker = self.worker(slots=1)
        worker.task("T")(lambda number: None)
        self.manager.submit("Unknown")
        self.manager.submit("T", wrong=1)
        self.manager.queue.send_message(MessageBody="[1]")
        self.assertEqual({"refused": 2}, dict(worker.run(burst=True)))
        told = {context["body"]: (type(error), context) for error, context in self.notified}
        self.assertEqual(
            [(UnknownTask, "Unknown"), (ArgumentsDoNotFit, "T"), (MalformedMessage, None)],
            [(told[message.body][0], told[message.body][1]["task"]) for message in self.messages],
        )
        for message in self.messages:
            context = told[message.body][1]
            self.assertEqual(
                (message.message_id, 1, self.manager.url, "refused"),
                tuple(context[name] for name in ("message_id", "receive_count", "queue", "outcome")),
            )

    def test_a_hard_timeout_is_met_though_the_task_swallows_it(self):
        def task():
            while True:
                try:
                    time.sleep(3600)
                except BaseException:
                    pass

        counts, message = self.run_one(task, hard_timeout=1, term_grace=1)
        self.assertEqual({"timed out": 1}, counts)
        self.assertIsInstance(self.notified[0][0], HardTimeout)
        self.assertIn("time.sleep(3600)", self.notified[0][1]["stack"])
        self.assertFalse(message.deleted)

    def test_a_task_over_its_memory_is_stopped(self):
        def task():
            held = bytearray(300 << 20)
            held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
            time.sleep(3600)

        counts, _ = self.run_one(task, max_memory=200 << 20, term_grace=0)
        self.assertEqual({"failed": 1}, counts)
        self.assertIsInstance(self.notified[0][0], MemoryLimitExceeded)

    def test_a_task_that_takes_nothing_is_below_any_limit_however_much_the_worker_holds(self):
        held = bytearray(os.urandom(1 << 20)) * 200

        def task():
            time.sleep(0.5)  # some looks at its memory

        counts, _ = self.run_one(task, max_memory=20 << 20)
        self.assertEqual(({"done": 1}, 200 << 20), (counts, len(held)))

    def test_one_slot_works_where_pidfd_open_is_refused(self):
        with mock.patch("os.pidfd_open", side_effect=PermissionError):
            counts, message = self.run_one(lambda: None, worker={"slots": 1})
        self.assertEqual(({"done": 1}, True), (counts, message.deleted))

    def test_a_task_that_is_killed_has_failed_and_its_slot_goes_on(self):
        worker = self.worker(slots=1)

        @worker.task("T")
        def task(die):
            if die:
                os.kill(os.getpid(), signal.SIGKILL)

        self.assertEqual(
            {"failed": 1, "done": 2}, self.run_tasks(worker, {"die": True}, {"die": False}, {"die": False})
        )
        self.assertIsInstance(self.notified[0][0], TaskKilled)

    def test_a_coroutine_that_only_shows_at_the_end_has_failed(self):
        async def later():
            pass

        counts, message = self.run_one(lambda: later())
        self.assertEqual({"failed": 1}, counts)
        self.assertFalse(message.deleted)

    def test_retry_delay_says_when_the_message_comes_back(self):
        def task():
            raise ValueError

        counts, message = self.run_one(task, retry_delay=lambda error, count: 41.5)
        self.assertEqual(({"failed": 1}, [42]), (counts, message.changes))

    def test_running_is_asked_and_one_that_says_no_stops_the_task(self):
        class Handler(ProcessMessageHandler):
            def run(self):
                self.report(step=7)
                time.sleep(3600)

            def running(self):
                return self.progress != {"step": 7}

            def notify(handler, exception, context=None):
                self.notified.append((exception, context))

        worker = Worker(
            self.manager, {"T": Handler}, slots=2, wait_time=0, sqs_timeout=120, alarm_timeout=0.1, hard_timeout=300
        )
        self.assertEqual({"stuck": 1}, self.run_tasks(worker, {}))
        self.assertIsInstance(self.notified[0][0], HandlerStuck)

    def test_what_the_user_runs_in_the_worker_may_hang_and_holds_up_nobody(self):
        release, go = threading.Event(), self.folder / "go"
        self.addCleanup(release.set)
        self.on_change = lambda message, seconds: go.touch()

        class Hanging(ProcessMessageHandler):
            def run(self):
                wait_for(go)

            def running(self):
                release.wait(DEADLINE_SECONDS)
                return False

        worker = Worker(
            self.manager, {"T": Hanging}, slots=2, wait_time=0, sqs_timeout=120, alarm_timeout=0.1, hard_timeout=300
        )
        self.manager.submit("T")
        finished = []
        worker._on_finish = finished.append
        self.stop_when(lambda: finished)
        self.assertEqual({"done": 1}, dict(worker.run()), "its claim was extended meanwhile")

    def test_on_finish_has_the_facts_and_what_it_raises_goes_no_further(self):
        finished = []
        worker = self.worker(on_finish=lambda each: finished.append(each) or 1 / 0)

        @worker.task("T")
        def task():
            held = bytearray(64 << 20)
            held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
            sum(range(10**6))

        self.assertEqual({"done": 1}, self.run_tasks(worker, {}))
        (facts,) = finished
        self.assertEqual(("T", "done", 1, 0), (facts.task, facts.outcome, facts.receive_count, facts.continuation))
        self.assertGreater(facts.cpu_seconds, 0.001)
        self.assertTrue(60 << 20 < facts.peak_memory < 100 << 20, facts.peak_memory)

    def test_around_is_entered_in_the_task_s_process_and_told_of_its_exception(self):
        folder = self.folder

        class Around:
            def __init__(self, task):
                self.name = task.name

            def __enter__(self):
                (folder / f"{self.name}-entered").touch()

            def __exit__(self, kind, error, traceback):
                (folder / f"{self.name}-{kind.__name__}-{os.getpid() != worker_pid}").touch()

        worker_pid = os.getpid()
        worker = self.worker(around=Around)

        @worker.task("T")
        def task():
            raise KeyError("x")

        self.assertEqual({"failed": 1}, self.run_tasks(worker, {}))
        self.assertEqual(["T-KeyError-True", "T-entered"], self.files())


class ClaimsTest(SlotsTestCase):
    # Longer than a virtual machine may stand still.
    TIMES = {"sqs_timeout": 120, "alarm_timeout": 0.2, "hard_timeout": 300}
    UNEXTENDED = {**TIMES, "alarm_timeout": 60}

    def setUp(self):
        super().setUp()
        self.go = self.folder / "go"

    def run_soon(self, worker, *kwargs):
        """run_tasks, of tasks that wait for a few extensions, one due each fifth of a second."""
        began = awake_seconds()
        counts = self.run_tasks(worker, *kwargs)
        self.assertLess(awake_seconds() - began, 10)
        return counts

    def test_a_claim_is_extended_for_as_long_as_its_task_runs(self):
        def on_change(message, seconds):
            if len(message.changes) == 4:
                self.go.touch()

        self.on_change = on_change
        worker, go = self.worker(**self.TIMES), self.go
        worker.task("T")(lambda: wait_for(go))
        self.assertEqual({"done": 1}, self.run_soon(worker, {}))
        self.assertEqual({120}, set(self.messages[0].changes))

    def test_an_extension_that_hangs_delays_no_other_claim(self):
        release = threading.Event()
        self.addCleanup(release.set)

        def on_change(message, seconds):
            sent["true" if '"hangs": true' in message.body else "false"] += 1
            if sent["false"] >= 5 and sent["true"] >= 2:  # what is not answered is sent again
                self.go.touch()
            if '"hangs": true' in message.body:
                release.wait(DEADLINE_SECONDS)

        sent = collections.Counter()
        self.on_change = on_change
        worker, go = self.worker(**self.TIMES), self.go
        worker.task("T")(lambda hangs: wait_for(go))
        self.assertEqual({"done": 2}, self.run_soon(worker, {"hangs": True}, {"hangs": False}))

    def test_a_failed_extension_is_told_and_tried_again(self):
        failures = [FAILURE, FAILURE]

        def on_change(message, seconds):
            if failures:
                raise failures.pop()
            self.go.touch()

        self.on_change = on_change
        worker, go = self.worker(**self.TIMES), self.go
        worker.task("T")(lambda: wait_for(go))
        self.assertEqual({"done": 1}, self.run_soon(worker, {}))
        self.assertEqual([FAILURE] * 2, [error for error, _ in self.notified])

    def lose(self, **settings):
        def on_change(message, seconds):
            raise LOST

        self.on_change = on_change
        worker = self.worker(**{**self.TIMES, **settings})
        folder, go = self.folder, self.go

        @worker.task("T", term_grace=1)
        def task():
            wait_for(go)
            (folder / "finished").touch()

        counts = self.run_tasks(worker, {})
        return counts, self.messages[0]

    def test_a_claim_that_is_lost_stops_its_task_and_nothing_is_done_about_the_message(self):
        counts, message = self.lose()
        self.assertEqual({"claim lost": 1}, counts)
        self.assertEqual(([120], False), (message.changes, message.deleted))
        self.assertEqual([], self.files())
        self.assertEqual([LOST], [error for error, _ in self.notified])

    def test_it_may_go_on_instead(self):
        thread = threading.Thread(target=lambda: (wait_until(lambda: self.notified, "it is lost"), self.go.touch()))
        thread.start()
        self.addCleanup(thread.join, DEADLINE_SECONDS)
        counts, message = self.lose(on_claim_lost="continue")
        self.assertEqual({"done": 1}, counts)
        self.assertTrue(message.deleted)
        self.assertEqual(["finished", "go"], self.files())

    def test_a_claim_that_lapsed_by_the_worker_s_own_clock_is_lost_whatever_sqs_says(self):
        now, jump = clock.now, [0.0]
        worker = self.worker(**self.TIMES)
        folder = self.folder

        @worker.task("T", term_grace=0)
        def task():
            (folder / "started").touch()
            time.sleep(3600)

        def suspend():
            wait_until(lambda: self.files(), "the task runs")
            jump[0] = 1000.0

        thread = threading.Thread(target=suspend)
        thread.start()
        self.addCleanup(thread.join, DEADLINE_SECONDS)
        with mock.patch.object(clock, "now", lambda: now() + jump[0]):
            self.assertEqual({"claim lost": 1}, self.run_tasks(worker, {}))
        self.assertIsInstance(self.notified[0][0], ClaimLapsed)
        self.assertFalse(self.messages[0].deleted)

    def test_a_claim_that_lapsed_is_lost_though_the_end_of_its_task_is_heard_of_first(self):
        """As where the worker was stopped itself, and the task failed meanwhile."""
        now, lapsed = clock.now, clock.now() + 1000
        worker = self.worker(**self.UNEXTENDED)

        @worker.task("T", retry_delay=lambda error, receives: 0)
        def task():
            raise ValueError

        def hear_of_end(loop, running, exception):
            patch = mock.patch.object(clock, "now", lambda: max(now(), lapsed))
            patch.start()
            self.addCleanup(patch.stop)
            on_ended(loop, running, exception)

        on_ended = Loop._ended
        with mock.patch.object(Loop, "_ended", hear_of_end):
            self.assertEqual({"claim lost": 1}, self.run_tasks(worker, {}))
        self.assertIsInstance(self.notified[0][0], ClaimLapsed)
        self.assertEqual([], self.messages[0].changes)

    def test_a_claim_that_runs_out_while_retry_delay_is_asked_is_not_given_back(self):
        now, jump = clock.now, [0.0]
        worker = self.worker(**self.UNEXTENDED)

        def retry_delay(error, receives):
            jump[0] = 1000.0
            return 0

        @worker.task("T", retry_delay=retry_delay)
        def task():
            raise ValueError

        with mock.patch.object(clock, "now", lambda: now() + jump[0]):
            self.assertEqual({"failed": 1}, self.run_tasks(worker, {}))
        self.assertEqual([], self.messages[0].changes)
        self.assertEqual([ValueError], [type(error) for error, _ in self.notified])

    def test_a_claim_that_is_lost_before_its_task_begins_starts_nothing(self):
        read = threading.Event()
        folder, claim_lost = self.folder, Loop._claim_lost

        def on_change(message, seconds):
            raise LOST

        def hear_of_it(loop, attempt):
            claim_lost(loop, attempt)
            read.set()

        self.on_change = on_change

        class Slow(ProcessMessageHandler):
            def __init__(self, message, **timeouts):
                super().__init__(message, **timeouts)
                read.wait(DEADLINE_SECONDS)

            def run(self):
                (folder / "ran").touch()

        worker = Worker(self.manager, {"T": Slow}, slots=2, wait_time=0, **self.TIMES)
        with mock.patch.object(Loop, "_claim_lost", hear_of_it):
            self.assertEqual({"claim lost": 1}, self.run_tasks(worker, {}))
        self.assertEqual([], self.files())


class StoppingTest(SlotsTestCase):
    def test_a_process_that_on_start_has_left_behind_does_not_hold_the_end(self):
        left = []

        def on_start():
            left.append(os.fork())
            if not left[0]:
                signal.pause()
                os._exit(0)

        try:
            worker = self.worker(on_start=on_start)
            worker.task("T")(lambda: None)
            self.assertEqual({"done": 1}, self.run_tasks(worker, {}))
        finally:
            os.kill(left[0], signal.SIGKILL)
            os.waitpid(left[0], 0)

    def test_a_process_that_comes_out_of_on_start_ends_there(self):
        forked = []
        worker = self.worker(on_start=lambda: forked.append(os.fork()))
        worker.task("T")(lambda: None)
        pid = os.getpid()
        counts = self.run_tasks(worker, {})
        if os.getpid() != pid:
            os._exit(98)
        self.assertEqual({"done": 1}, counts)
        self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]))

    def test_all_slots_drain_at_once_and_each_message_is_given_back(self):
        worker = self.worker(slots=3, shutdown_grace=0.2)

        @worker.task("T", term_grace=0.1)
        def task(name):
            meet(self.folder, 3, name)
            time.sleep(3600)

        for name in "abc":
            self.manager.submit("T", name=name)
        self.stop_when(lambda: len(self.files()) == 3)
        self.assertEqual({"interrupted": 3}, dict(worker.run()))
        self.assertEqual([[0]] * 3, [message.changes for message in self.messages])
        self.assertEqual([False] * 3, [message.deleted for message in self.messages])

    def test_a_task_sees_that_the_worker_stops_and_may_finish_within_the_grace(self):
        from sqstaskmaster._claim.current import current_task

        worker = self.worker(shutdown_grace=DEADLINE_SECONDS)
        folder = self.folder

        @worker.task("T")
        def task():
            (folder / "started").touch()
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not current_task().stopping and time.monotonic() < deadline:
                time.sleep(0.01)
            assert current_task().stopping

        self.manager.submit("T")
        self.stop_when(lambda: self.files())
        self.assertEqual({"done": 1}, dict(worker.run()))

    def test_outside_the_main_thread_is_a_clear_error(self):
        from sqstaskmaster.errors import UnsupportedContext

        worker, errors = self.worker(), []
        worker.task("T")(lambda: None)

        def run():
            try:
                worker.run(burst=True)
            except UnsupportedContext as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(DEADLINE_SECONDS)
        self.assertIn("main thread", str(errors[0]))

    def assert_a_killed_keeper_fails_its_task_only(self):
        worker = self.worker(slots=2)

        @worker.task("T")
        def task(kill):
            if kill:
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(3600)

        counts = self.run_tasks(worker, {"kill": True}, *[{"kill": False}] * 6)
        self.assertEqual({"failed": 1, "done": 6}, counts)

    def test_a_keeper_that_is_killed_fails_its_task_only_and_is_replaced(self):
        self.assert_a_killed_keeper_fails_its_task_only()

    def test_no_message_is_claimed_for_a_slot_whose_keeper_s_end_only_its_task_has_seen(self):
        adopt = SlotPool._adopt

        def unheard(slots, number, slot):
            adopt(slots, number, slot)
            slots._world.remove_reader(slot.descriptor)

        with mock.patch.object(SlotPool, "_adopt", unheard):
            self.assert_a_killed_keeper_fails_its_task_only()

    def test_where_a_task_was_killed_past_its_keeper_the_next_has_another_keeper(self):
        """Else its process, forked ahead, may be among those killed: where the keeper went on at last, just then."""
        worker, folder = self.worker(slots=1), self.folder
        past_keeper, kill_all, pid = TaskProcess._kill_past_keeper, process_tree.kill_all, os.getpid()
        stopped, killed = [], []

        @worker.task("Stops", hard_timeout=2, term_grace=0)
        def stops():
            (folder / str(os.getppid())).touch()
            os.kill(os.getppid(), signal.SIGSTOP)
            time.sleep(3600)

        worker.task("Next")(lambda: (folder / str(os.getppid())).touch())

        def from_here(running):
            stopped.append(running._keeper)
            past_keeper(running)

        def wake(keeper, descriptor):
            if stopped and not killed:
                before = process_tree.descendants(keeper)
                os.kill(keeper, signal.SIGCONT)
                wait_until(lambda: set(process_tree.descendants(keeper)) - set(before), "the keeper forks ahead")
            return True

        def kill(pids):
            if os.getpid() == pid:
                killed.extend(pids)
            kill_all(pids)

        self.manager.submit("Stops")
        self.manager.submit("Next")
        with (
            mock.patch.object(process_tree, "wake", wake),
            mock.patch.object(process_tree, "kill_all", kill),
            mock.patch.object(TaskProcess, "_kill_past_keeper", from_here),
        ):
            self.assertEqual({"timed out": 1, "done": 1}, dict(worker.run(burst=True)))
        self.assertTrue(killed)
        self.assertEqual(2, len(self.files()), "keepers")


class SeveralQueuesTest(SlotsTestCase):
    def test_the_first_queue_goes_first(self):
        order = []
        second = TaskManager(f"memory:{self.id()}-second", queue_constructor=LocalQueue)
        worker = Worker(
            [self.manager, second], slots=1, wait_time=0, on_finish=lambda finished: order.append(finished.queue)
        )
        worker.task("T")(lambda: None)
        for manager in (second, second, self.manager, self.manager):
            manager.submit("T")
        self.assertEqual({"done": 4}, dict(worker.run(burst=True)))
        self.assertEqual([self.manager.url] * 2 + [second.url] * 2, sorted(order, key=lambda url: url == second.url))
        self.assertEqual(self.manager.url, order[0])

    def test_a_queue_that_cannot_be_polled_does_not_stop_the_others(self):
        class Gone(LocalQueue):
            def receive_messages(self, **kwargs):
                raise ClientError({"Error": {"Code": "QueueDoesNotExist", "Message": "no"}}, "ReceiveMessage")

        gone = TaskManager(f"memory:{self.id()}-gone", queue_constructor=Gone)
        finished = []
        worker = Worker([gone, self.manager], slots=1, wait_time=0, on_finish=finished.append)
        worker.task("T")(lambda: None)
        self.manager.submit("T")
        self.stop_when(lambda: finished)
        self.assertEqual({"done": 1}, dict(worker.run()))
        with self.assertRaises(PollRefused):
            alone = Worker(gone, slots=2, wait_time=0)
            alone.task("T")(lambda: None)
            alone.run()


class ServerSlotsTest(ServerTestCase):
    """Against a real server, in batches."""

    def setUp(self):
        super().setUp()
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_many_short_tasks_share_their_requests_and_leave_nothing(self):
        url = self.create_queue()
        requests = collections.Counter()
        # Of the session, whose clients all do as it does: the library makes a second one.
        boto3.DEFAULT_SESSION.events.register(
            "before-send.sqs", lambda **said: requests.update([said["event_name"].rpartition(".")[2]])
        )
        manager = TaskManager(url)
        worker = Worker(manager, slots=8, wait_time=0)
        worker.task("T")(lambda: None)
        manager.submit_many([("T", {})] * 60)
        requests.clear()
        self.assertEqual({"done": 60}, dict(worker.run(burst=True)))
        self.assertEqual((0, 0, 0), self.counts(url))
        self.assertGreater(requests["DeleteMessageBatch"], 0)
        self.assertLess(requests["DeleteMessage"] + requests["DeleteMessageBatch"], 45)

    def test_tasks_of_one_process_that_stays_share_their_deletes_and_those_of_a_fifo_queue_do_not(self):
        """SQS gives out no other message of a group before the delete, and it may be the group of the next."""
        fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
        for attributes in ({}, fifo):
            manager = TaskManager(self.create_queue(**attributes))
            requests = collections.Counter()
            boto3.DEFAULT_SESSION = session()
            boto3.DEFAULT_SESSION.events.register(
                "before-send.sqs", lambda **said: requests.update([said["event_name"].rpartition(".")[2]])
            )
            worker = Worker(manager, wait_time=0, max_tasks_per_child=None)
            worker.task("T")(lambda number: None)
            for number in range(15):
                options = {"message_group_id": f"group-{number}"} if attributes else {}
                manager.options(**options).submit("T", number=number)
            requests.clear()
            with self.subTest(attributes), mock.patch.object(settling, "_LINGER_SECONDS", 1.0):
                self.assertEqual({"done": 15}, dict(worker.run(burst=True)))
                deletes = requests["DeleteMessage"] + requests["DeleteMessageBatch"]
                if attributes:
                    self.assertEqual(15, deletes)
                else:
                    self.assertLess(deletes, 8)

    def test_claims_are_extended_in_batches_and_no_message_comes_back_while_its_task_runs(self):
        url = self.create_queue()
        requests = collections.Counter()
        # Of the session, whose clients all do as it does: the library makes a second one.
        boto3.DEFAULT_SESSION.events.register(
            "before-send.sqs", lambda **said: requests.update([said["event_name"].rpartition(".")[2]])
        )
        manager = TaskManager(url)
        worker = Worker(manager, slots=4, sqs_timeout=2, alarm_timeout=0.5, hard_timeout=30, wait_time=1)
        worker.task("T")(lambda: time.sleep(4))
        manager.submit_many([("T", {})] * 4)
        self.assertEqual({"done": 4}, dict(worker.run(burst=True)))
        self.assertEqual((0, 0, 0), self.counts(url))
        self.assertGreater(requests["ChangeMessageVisibilityBatch"], 3)

    def test_no_two_tasks_of_a_group_of_a_fifo_queue_run_at_once(self):
        manager = TaskManager(self.create_queue(FifoQueue="true", ContentBasedDeduplication="true"))
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        journal = Path(folder.name, "journal")
        worker = Worker(manager, slots=4, wait_time=1)

        @worker.task("T")
        def task(group, number):
            with journal.open("a", buffering=1) as lines:
                lines.write(f"{group} {number} begins\n")
                time.sleep(0.05)
                lines.write(f"{group} {number} ends\n")

        by_group = manager.options(message_group_id=lambda task, kwargs: kwargs["group"])
        by_group.submit_many([("T", {"group": group, "number": number}) for number in range(3) for group in "ab"])
        self.assertEqual({"done": 6}, dict(worker.run(burst=True)))
        lines = journal.read_text().splitlines()
        for group in "ab":
            expected = [f"{group} {number} {what}" for number in range(3) for what in ("begins", "ends")]
            self.assertEqual(expected, [line for line in lines if line.startswith(group)])

    def test_deleting_a_running_message_stops_its_task(self):
        url = self.create_queue()
        manager = TaskManager(url)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        finished = []
        worker = Worker(manager, slots=2, sqs_timeout=120, alarm_timeout=0.3, wait_time=1, on_finish=finished.append)

        @worker.task("T", term_grace=0)
        def task():
            Path(folder.name, "started").touch()
            time.sleep(3600)

        manager.submit("T")

        def purge():
            wait_until(lambda: os.listdir(folder.name), "the task runs")
            self.sqs.purge_queue(QueueUrl=url)
            wait_until(lambda: finished, "the task is stopped")
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=purge)
        thread.start()
        self.addCleanup(thread.join, DEADLINE_SECONDS)
        self.assertEqual({"claim lost": 1}, dict(worker.run()))


if __name__ == "__main__":
    unittest.main()
