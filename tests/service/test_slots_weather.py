"""Bad weather, poor neighbours and odd answers: what is one slot's or one queue's trouble stays that."""

import logging
import os
import signal
import threading
import time
import unittest
from unittest import mock

from botocore.exceptions import ClientError

from sqstaskmaster import (
    Continue,
    LocalQueue,
    PollRefused,
    ProcessMessageHandler,
    TaskManager,
    TasksCannotStart,
    Worker,
)
from sqstaskmaster._isolation import process_tree, task_side
from sqstaskmaster._isolation.slot import Slot
from sqstaskmaster._service import loop, running
from sqstaskmaster.errors import ArgumentsDoNotFit, CannotContinue, TaskNotStarted
from tests.guard import awake_seconds
from tests.service.test_slots import LOST, Message, SlotsTestCase, wait_for
from tests.support import DEADLINE_SECONDS, wait_until

REFUSED = ClientError({"Error": {"Code": "AccessDenied", "Message": "not allowed"}}, "ReceiveMessage")


class PollsTest(SlotsTestCase):
    def queue_of(self, receive):
        """A queue whose polls do that first, given their number."""
        polls = []

        class Odd(LocalQueue):
            def receive_messages(self, **kwargs):
                polls.append(kwargs)
                receive(len(polls))
                return super().receive_messages(**kwargs)

        return TaskManager(f"memory:{self.id()}-odd", queue_constructor=Odd)

    def test_what_a_provider_of_credentials_answers_once_is_a_failed_poll_and_the_running_task_goes_on(self):
        go = self.folder / "go"

        def receive(number):
            if number == 2:
                go.touch()
                raise KeyError("AccessKeyId")

        manager = self.queue_of(receive)
        worker = Worker(manager, slots=2, wait_time=0)
        worker.task("T")(lambda: wait_for(go))
        manager.submit("T")
        self.assertEqual({"done": 1}, dict(worker.run(burst=True)))

    def test_a_poll_that_is_refused_after_good_ones_stops_no_running_task(self):
        go, refused = self.folder / "go", []

        def receive(number):
            if 1 < number < 4:
                refused.append(number)
                go.touch()
                raise REFUSED

        manager = self.queue_of(receive)
        worker = Worker(manager, slots=2, wait_time=0, shutdown_grace=0)
        worker.task("T")(lambda: wait_for(go))
        manager.submit("T")
        self.assertEqual({"done": 1}, dict(worker.run(burst=True)))
        self.assertEqual([2, 3], refused)

    def test_a_burst_over_two_queues_of_which_one_is_refused_ends_with_that_ones_refusal(self):
        def receive(number):
            raise REFUSED

        refused = self.queue_of(receive)
        worker = Worker([self.manager, refused], slots=2, wait_time=0)
        worker.task("T")(lambda: None)
        self.manager.submit("T")
        with self.assertRaisesRegex(PollRefused, "-odd"):
            worker.run(burst=True)
        self.assertEqual([True], [message.deleted for message in self.messages])

    def test_a_poll_that_does_not_answer_holds_back_no_other_queue_and_what_it_brings_late_is_run(self):
        released, polled = threading.Event(), threading.Event()
        self.addCleanup(released.set)

        def receive(number):
            if number == 1:
                polled.set()
                released.wait(DEADLINE_SECONDS)

        silent = self.queue_of(receive)
        finished = []
        worker = Worker([silent, self.manager], slots=2, wait_time=0, on_finish=lambda f: finished.append(f.queue))
        worker.task("T")(lambda: None)
        silent.submit("T")
        self.manager.submit("T")

        def release():
            wait_until(lambda: finished, "the healthy queue's task is done")
            released.set()
            wait_until(lambda: len(finished) == 2, "the late message's task is done")
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=release)
        thread.start()
        self.addCleanup(thread.join, DEADLINE_SECONDS)
        self.assertEqual({"done": 2}, dict(worker.run()))
        self.assertEqual([self.manager.url, silent.url], finished)


class NeighboursTest(SlotsTestCase):
    def beside_a_healthy_one(self, kind, **settings):
        """What becomes of a task of that handler class, beside a healthy task that goes on until it has ended."""
        ended = self.folder / "ended"

        class Healthy(ProcessMessageHandler):
            def run(self):
                wait_for(ended)

        def on_finish(finished):
            if finished.task == "Odd":
                ended.touch()

        def notify(exception, context):
            self.notified.append((exception, context))
            ended.touch()

        manager = TaskManager(self.manager.url, notify=notify, queue_constructor=type(self.manager.queue))
        worker = Worker(
            manager, {"Odd": kind, "Healthy": Healthy}, slots=2, wait_time=0, on_finish=on_finish, **settings
        )
        manager.submit("Healthy")
        manager.submit("Odd")
        return dict(worker.run(burst=True))

    def handler(self, **members):
        notified = self.notified

        def notify(handler, exception, context=None):
            notified.append((exception, context))

        return type("Odd", (ProcessMessageHandler,), {"run": lambda self: None, "notify": notify, **members})

    def test_a_handler_that_sets_nonsense_is_refused_and_its_neighbour_goes_on(self):
        def setting(name, value):
            def __init__(handler, message, **timeouts):
                ProcessMessageHandler.__init__(handler, message, **timeouts)
                setattr(handler, name, value)

            return __init__

        nonsense = {"hard_timeout": None, "max_memory": "2G", "dead_letter": [KeyError], "term_grace": "5"}
        for name, value in nonsense.items():
            with self.subTest(name):
                self.notified.clear()
                kind = self.handler(__init__=setting(name, value))
                self.assertEqual({"refused": 1, "done": 1}, self.beside_a_healthy_one(kind))
                ((error, _),) = self.notified
                self.assertIsInstance(error, ArgumentsDoNotFit)
                self.assertIn(name, str(error).lower().replace("hard timeout", "hard_timeout"))
                (self.folder / "ended").unlink()

    def test_a_constructor_that_forgets_its_super_is_refused_and_its_neighbour_goes_on(self):
        kind = self.handler(__init__=lambda handler, message, **timeouts: None)
        self.assertEqual({"refused": 1, "done": 1}, self.beside_a_healthy_one(kind))
        self.assertIsInstance(self.notified[0][0], ArgumentsDoNotFit)

    def test_a_running_whose_answer_has_no_truth_stops_its_task_only(self):
        class Array:
            def __bool__(self):
                raise ValueError("The truth value of an array is ambiguous")

        kind = self.handler(run=lambda self: time.sleep(3600), running=lambda self: Array())
        counts = self.beside_a_healthy_one(kind, sqs_timeout=120, alarm_timeout=0.1)
        self.assertEqual({"failed": 1, "done": 1}, counts)
        self.assertRegex(str(self.notified[0][0]), "ambiguous")

    def test_a_continue_whose_kwargs_are_no_mapping_fails_its_task_only(self):
        for kwargs in (None, [1], 5):
            with self.subTest(kwargs):
                self.notified.clear()

                def run(handler, kwargs=kwargs):
                    ending = Continue()
                    ending.kwargs = kwargs
                    raise ending

                self.assertEqual({"failed": 1, "done": 1}, self.beside_a_healthy_one(self.handler(run=run)))
                self.assertIsInstance(self.notified[0][0], CannotContinue)
                (self.folder / "ended").unlink()

    def test_where_no_thread_can_be_started_the_worker_waits_until_there_is_one(self):
        start, refused = threading.Thread.start, []

        def start_later(thread):
            if thread.name.startswith("sqstaskmaster-polls") and len(refused) < 20:
                refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            start(thread)

        worker = self.worker()
        worker.task("T")(lambda: None)
        with mock.patch.object(threading.Thread, "start", start_later):
            self.assertEqual({"done": 3}, self.run_tasks(worker, {}, {}, {}))
        self.assertEqual(20, len(refused))

    def test_a_measure_of_memory_that_takes_long_holds_up_neither_limit_nor_claim_of_a_neighbour(self):
        memory, released = process_tree.own_memory, threading.Event()
        self.addCleanup(released.set)

        def slow(*given):
            released.wait(DEADLINE_SECONDS)
            return memory(*given)

        worker = self.worker()

        @worker.task("Limited", hard_timeout=1, term_grace=0)
        def limited():
            time.sleep(3600)

        worker.task("Measured", max_memory=1 << 40)(lambda: wait_for(self.folder / "go"))
        worker._on_finish = lambda finished: (self.folder / "go").touch()
        self.manager.submit("Measured")
        self.manager.submit("Limited")
        with mock.patch.object(process_tree, "own_memory", slow):
            self.assertEqual({"timed out": 1, "done": 1}, dict(worker.run(burst=True)))


class CallbacksTest(SlotsTestCase):
    def test_a_callback_that_hangs_is_given_up_named_in_the_log_and_needed_by_nothing(self):
        released = threading.Event()
        self.addCleanup(released.set)
        logging.disable(logging.NOTSET)
        worker = self.worker(slots=2)

        @worker.task("T", retry_delay=lambda error, receives: released.wait(DEADLINE_SECONDS))
        def task():
            raise ValueError

        with (
            mock.patch.object(running, "CALLBACK_SECONDS", 0.3),
            mock.patch("sqstaskmaster._service.settling.CALLBACK_SECONDS", 0.3),
            mock.patch.object(loop, "_LAST_SECONDS", 0.5),
            self.assertLogs("sqstaskmaster", "WARNING") as logs,
        ):
            self.assertEqual({"failed": 3}, self.run_tasks(worker, {}, {}, {}))
        given_up = [record for record in logs.records if getattr(record, "action", "") == "callback_given_up"]
        self.assertEqual(3, len(given_up))
        self.assertIn("retry_delay() of task T", given_up[0].getMessage())
        self.assertEqual([[]] * 3, [message.changes for message in self.messages], "it counts as None")

    def test_a_notify_that_hangs_ends_neither_stop_nor_burst(self):
        released = threading.Event()
        self.addCleanup(released.set)
        manager = TaskManager(
            self.manager.url,
            notify=lambda *_, **__: released.wait(DEADLINE_SECONDS),
            queue_constructor=type(self.manager.queue),
        )
        for burst in (False, True):
            with self.subTest(burst=burst):
                worker = Worker(manager, slots=2, wait_time=0, shutdown_grace=0)

                @worker.task("T")
                def task():
                    (self.folder / "ran").touch()
                    raise ValueError

                manager.submit("T")
                if not burst:
                    self.stop_when(self.files)
                began = awake_seconds()
                with (
                    mock.patch.object(loop, "_LAST_SECONDS", 0.5),
                    mock.patch("sqstaskmaster._service.settling.CALLBACK_SECONDS", 0.5),
                ):
                    worker.run(burst=burst)
                self.assertLess(awake_seconds() - began, DEADLINE_SECONDS / 2)
                (self.folder / "ran").unlink()


class StartsTest(SlotsTestCase):
    def test_tasks_that_cannot_be_started_are_given_back_with_a_delay_and_end_the_worker_after_eight(self):
        worker = self.worker(slots=2)
        worker.task("T")(lambda: None)
        for _ in range(20):
            self.manager.submit("T")
        backoff = mock.patch.object(loop._START_BACKOFF, "first", 0.01)
        refuse = mock.patch.object(Slot, "start", side_effect=OSError(24, "Too many open files"))
        with backoff, refuse, self.assertRaisesRegex(TasksCannotStart, "8 tasks in a row: .*Too many open files"):
            worker.run()
        self.assertLessEqual(len(self.messages), 9)
        # One that comes while the worker stops for it does.
        self.assertEqual(0, sum(0 in message.changes for message in self.messages[:8]), "none comes back at once")
        self.assertFalse(any(message.deleted for message in self.messages))

    def test_a_start_that_succeeds_again_begins_the_count_anew(self):
        start, refused = Slot.start, []

        def start_sometimes(slot, order, **named):
            if len(refused) % 2 == 0:
                refused.append(slot)
                raise OSError(24, "Too many open files")
            refused.append(None)
            return start(slot, order, **named)

        worker = self.worker(slots=1)
        worker.task("T")(lambda: None)
        backoff = mock.patch.object(loop._START_BACKOFF, "first", 0.01)
        with backoff, mock.patch.object(Slot, "start", start_sometimes):
            counts = self.run_tasks(worker, *[{}] * 20)
        self.assertEqual({"given back": 10, "done": 10}, counts)

    def test_a_keeper_that_is_stopped_counts_as_dead_and_its_message_is_given_back(self):
        logging.disable(logging.NOTSET)
        worker, stopped, start = self.worker(slots=2), [], Slot.start
        worker.task("T")(lambda: None)

        def start_stopped(slot, order, **named):
            if not stopped:
                stopped.append(slot.keeper)
                os.kill(slot.keeper, signal.SIGSTOP)
            return start(slot, order, **named)

        with mock.patch.object(Slot, "start", start_stopped), self.assertLogs("sqstaskmaster", "ERROR") as logs:
            counts = self.run_tasks(worker, {}, {})
        self.assertEqual({"given back": 1, "done": 1}, counts)
        self.assertIn("has not answered", "\n".join(logs.output))
        self.assertFalse(os.path.exists(f"/proc/{stopped[0]}/status") and self.is_alive(stopped[0]))

    def is_alive(self, pid):
        return process_tree._state_of(pid) not in (b"Z", b"X")

    def test_a_spare_that_dies_before_it_has_its_task_is_a_failed_start_and_not_forked_again_and_again(self):
        logging.disable(logging.NOTSET)
        forked = self.folder / "forked"
        forked.touch()
        pid = os.getpid()

        def die_in_spares():
            """Whoever is forked by a keeper dies, as by the kernel's lack of memory."""
            with open(forked, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)

        settle = task_side.settle

        def settle_or_die(keeper, nothing):
            settle(keeper, nothing)
            if os.getppid() != pid:
                die_in_spares()

        worker = self.worker(slots=1)
        worker.task("T")(lambda: None)
        backoff = mock.patch.object(loop._START_BACKOFF, "first", 0.01)
        with backoff, mock.patch.object(task_side, "settle", settle_or_die), self.assertRaises(TasksCannotStart):
            for _ in range(10):
                self.manager.submit("T")
            worker.run()
        self.assertLess(len(forked.read_text()), 60)


class OwnCopyTest(SlotsTestCase):
    """A message that this worker receives again while it still has its task."""

    def setUp(self):
        super().setUp()
        self.go = self.folder / "go"
        case = self

        class Queue(type(self.manager.queue)):
            """Brings the message of the running task once more, as after an outage that was longer than its claim."""

            def receive_messages(self, **kwargs):
                received = super().receive_messages(**kwargs)
                if not received and case.again:
                    case.again.pop()
                    received = [Message(case.messages[0], case.on_change)]
                    case.messages += received
                return received

        self.again = [1]
        self.manager = TaskManager(
            self.manager.url,
            notify=lambda exception, context: self.notified.append((exception, context)),
            queue_constructor=Queue,
        )

    def test_a_task_that_runs_and_was_not_told_to_stop_takes_the_new_claim_and_is_settled_by_it(self):
        worker, go = self.worker(slots=2), self.go
        ran = []

        @worker.task("T")
        def task():
            (self.folder / f"ran-{os.getpid()}").touch()
            wait_for(go)

        def release():
            wait_until(lambda: len(self.messages) == 2, "the message is there again")
            go.touch()

        thread = threading.Thread(target=release)
        thread.start()
        self.addCleanup(thread.join, DEADLINE_SECONDS)
        self.assertEqual({"done": 1}, self.run_tasks(worker, {}))
        self.assertEqual(1, sum(name.startswith("ran") for name in self.files()), ran)
        self.assertEqual([False, True], [message.deleted for message in self.messages])

    def test_a_task_that_is_being_stopped_ends_first_and_the_message_starts_in_its_slot(self):
        lost = []

        def on_change(message, seconds):
            if not lost:
                lost.append(message)
                raise LOST

        self.on_change, self.again = on_change, []
        worker = self.worker(slots=2, sqs_timeout=120, alarm_timeout=0.2)

        @worker.task("T", term_grace=5)
        def task():
            first = not (self.folder / "first").exists()
            (self.folder / "first").touch()
            try:
                if first:
                    time.sleep(3600)
            finally:
                if first:
                    self.assert_alone(DEADLINE_SECONDS)
                    (self.folder / "first ended").touch()
                else:
                    assert (self.folder / "first ended").exists(), "beside the first"

        def bring_again():
            wait_until(lambda: lost, "the claim is lost")
            self.again.append(1)
            wait_until(lambda: len(self.messages) == 2, "the message is there again")
            (self.folder / "again").touch()

        thread = threading.Thread(target=bring_again)
        thread.start()
        self.addCleanup(thread.join, DEADLINE_SECONDS)
        self.assertEqual({"claim lost": 1, "done": 1}, self.run_tasks(worker, {}))
        self.assertEqual([False, True], [message.deleted for message in self.messages])

    def assert_alone(self, seconds):
        """In the task: wait until its message is there again."""
        wait_for(self.folder / "again")
        time.sleep(0.2)  # in which the other would have started


class SigtermToAllTest(SlotsTestCase):
    def test_a_task_that_sigterm_ends_just_before_its_worker_is_told_to_stop_is_interrupted(self):
        worker = self.worker(slots=1)
        worker_pid = os.getpid()

        @worker.task("T")
        def task():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(3600)
            finally:
                os.kill(worker_pid, signal.SIGTERM)

        self.manager.submit("T")
        self.assertEqual({"interrupted": 1}, dict(worker.run()))
        self.assertEqual([False], [message.deleted for message in self.messages])
        self.assertLessEqual(self.messages[0].changes[-1], 21)

    def test_one_that_sigterm_ends_while_nobody_stops_the_worker_has_failed(self):
        worker = self.worker(slots=1)

        @worker.task("T")
        def task():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3600)

        self.assertEqual({"failed": 1}, self.run_tasks(worker, {}))


class NotStartedTest(unittest.TestCase):
    def test_the_error_of_a_task_that_was_not_started_says_why(self):
        self.assertIn("because no process could be made", str(TaskNotStarted("T", "no memory")))


if __name__ == "__main__":
    unittest.main()
