"""SIGTERM and SIGINT in every phase of a worker: nothing is stranded, nothing that is finished is repeated."""

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

from sqstaskmaster import LocalMessage, LocalQueue, MessageHandler, ProcessMessageHandler, TaskManager, Worker
from sqstaskmaster._claim.attempt import Terms
from sqstaskmaster._signals.alarm import Alarm
from sqstaskmaster._signals.shutdown import Shutdown
from sqstaskmaster.errors import PollRefused, ShutdownRequested
from tests.guard import awake_seconds
from tests.support import DEADLINE_SECONDS, Script, ServerTestCase, wait_until
from tests.support.commands import alive


def stop_this_process(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)


class PhasesTest(unittest.TestCase):
    """One worker in this process, over a queue in memory; the signal is sent by the phase itself."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.messages = []
        self.ran = []
        case = self

        class Message(LocalMessage):
            def delete(self):
                case.in_delete()
                super().delete()

        deadline = time.monotonic() + DEADLINE_SECONDS

        class Queue(LocalQueue):
            def receive_messages(self, **kwargs):
                case.assertLess(time.monotonic(), deadline, "the worker does not stop")
                received = super().receive_messages(**kwargs)
                for message in received:
                    message.__class__ = Message
                case.messages += received
                case.at_end_of_poll()
                return received

        class Handler(MessageHandler):
            def __init__(self, message, **timeouts):
                super().__init__(message, **timeouts)
                case.in_constructor()

            def __enter__(self):
                super().__enter__()
                case.in_enter()
                return self

            def run(self):
                case.ran.append(self)
                case.in_run()

        self.handler = Handler
        self.manager = TaskManager(f"memory:{self.id()}", queue_constructor=Queue)
        self.manager.submit("T")
        self.manager.submit("T")

    at_end_of_poll = in_constructor = in_enter = in_run = in_delete = staticmethod(lambda: None)

    def run_worker(self, grace=60.0):
        worker = Worker(self.manager, {"T": self.handler}, wait_time=0, shutdown_grace=grace)
        counts = worker.run()
        self.assertEqual(1, len(self.messages), "another was taken")
        return counts

    def assert_given_back_unstarted(self):
        self.assertEqual([], self.ran)
        self.assertEqual(0, self.messages[0].visibility_changes[-1])
        self.assertFalse(self.messages[0].deleted)

    def test_a_message_that_the_last_poll_brings_is_given_back_at_once(self):
        self.at_end_of_poll = stop_this_process
        self.assertEqual({"given back": 1}, self.run_worker())
        self.assert_given_back_unstarted()

    def test_between_poll_and_start_the_message_is_given_back_at_once(self):
        self.in_constructor = stop_this_process
        self.assertEqual({"given back": 1}, self.run_worker())
        self.assert_given_back_unstarted()

    def test_while_the_handler_is_entered_the_message_is_given_back_at_once(self):
        self.in_enter = lambda: stop_this_process(2)
        self.assertEqual({"interrupted": 1}, self.run_worker())
        self.assert_given_back_unstarted()

    def test_a_running_task_that_ends_in_its_grace_is_done(self):
        self.in_run = stop_this_process
        self.assertEqual({"done": 1}, self.run_worker())
        self.assertTrue(self.messages[0].deleted)

    def test_a_running_task_is_stopped_after_its_grace_and_its_message_given_back(self):
        def run():
            stop_this_process()
            wait_until(lambda: False, "the end of the grace")

        self.in_run = run
        self.assertEqual({"interrupted": 1}, self.run_worker(grace=0.2))
        self.assertEqual([0], self.messages[0].visibility_changes)
        self.assertFalse(self.messages[0].deleted)

    def test_the_second_signal_means_now(self):
        def run():
            stop_this_process(2)
            wait_until(lambda: False, "the second signal")

        self.in_run = run
        self.assertEqual({"interrupted": 1}, self.run_worker(grace=3600))
        self.assertEqual([0], self.messages[0].visibility_changes)

    def test_a_task_that_swallows_the_stop_is_stopped_again(self):
        swallowed = []

        def run():
            stop_this_process()
            while len(swallowed) < 3:
                try:
                    wait_until(lambda: False, "the end of the grace")
                except ShutdownRequested as error:
                    swallowed.append(error)
            raise swallowed[-1]

        self.in_run = run
        with mock.patch("sqstaskmaster._block.alarm_block._STOP_AGAIN_SECONDS", 0.05):
            self.assertEqual({"interrupted": 1}, self.run_worker(grace=0.1))

    def test_finished_work_is_deleted_whatever_comes_in_the_delete(self):
        def delete():
            stop_this_process(3)
            time.sleep(0.1)  # the alarm that the signals armed would come now

        self.in_delete = delete
        self.assertEqual({"done": 1}, self.run_worker(grace=0.0))
        self.assertTrue(self.messages[0].deleted)

    def test_a_task_that_took_the_signals_for_itself_does_not_keep_the_worker_from_stopping(self):
        def run():
            if len(self.ran) == 1:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            else:
                os.kill(os.getpid(), signal.SIGINT)

        self.in_run = run
        worker = Worker(self.manager, {"T": self.handler}, wait_time=0)
        self.manager.submit("T")
        self.assertEqual({"done": 2}, worker.run())

    def test_what_was_there_before_is_put_back(self):
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
        found = [signal.signal(number, handler := lambda *_: None) for number in numbers]
        self.addCleanup(lambda: [signal.signal(*each) for each in zip(numbers, found)])
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.addCleanup(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGINT})
        handlers = [signal.getsignal(number) for number in numbers]
        for stop in (stop_this_process, mock.Mock(side_effect=AttributeError("a defect"))):
            self.at_end_of_poll = stop
            try:
                Worker(self.manager, {"T": self.handler}, wait_time=0).run()
            except PollRefused:
                pass
            self.assertEqual(handlers, [signal.getsignal(number) for number in numbers])
            self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))
            self.assertIn(signal.SIGINT, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        self.assertIsNotNone(handler)


class PollTest(unittest.TestCase):
    def setUp(self):
        self.stop = Shutdown(60)
        self.stop.__enter__()
        self.addCleanup(self.stop.__exit__)

    def test_it_gives_what_the_function_returns_and_raises_what_it_raises(self):
        self.assertEqual(5, self.stop.poll(lambda: 5))
        with self.assertRaises(KeyError):
            self.stop.poll(lambda: {}["x"])

    def test_the_first_signal_does_not_interrupt_it_and_no_other_is_begun_after_that(self):
        self.assertEqual("a message", self.stop.poll(lambda: stop_this_process() or time.sleep(0.05) or "a message"))
        with self.assertRaises(ShutdownRequested):
            self.stop.poll(lambda: self.fail("called"))

    def test_the_second_signal_abandons_it(self):
        with self.assertRaises(ShutdownRequested):
            self.stop.poll(self.stopped_twice(self.stop))

    def stopped_twice(self, stop):
        """A poll that takes long, during which the process is told to stop, and told again."""
        released = threading.Event()
        self.addCleanup(released.set)

        def poll():
            stop_this_process()
            while not stop.requested:  # else the system makes one of both
                pass
            stop_this_process()
            released.wait(DEADLINE_SECONDS)

        return poll

    def test_a_second_signal_that_comes_on_the_heels_of_the_first_is_noticed(self):
        for _ in range(50):
            with Shutdown(60) as stop, self.assertRaises(ShutdownRequested):
                stop.poll(self.stopped_twice(stop))

    def test_a_wait_ends_with_a_signal(self):
        threading.Timer(0.05, stop_this_process).start()
        began = awake_seconds()
        self.stop.wait(DEADLINE_SECONDS)
        self.assertLess(awake_seconds() - began, DEADLINE_SECONDS / 2)

    def test_what_a_task_took_for_itself_is_taken_again(self):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with self.assertLogs("sqstaskmaster", "WARNING"):
            self.stop.renew()
        stop_this_process()
        self.assertEqual(["SIGTERM"], self.stop.clear())


class AskedToStop(MessageHandler):
    """In the block of a worker that was told to stop, and whose grace is over."""

    def __init__(self):
        super().__init__(LocalMessage("{}", {}), 30, 10, 60)
        self._accept(Terms(queue_url="memory:", stop_at=lambda: 0.0))

    def alarm(self):
        self._handle_alarm(signal.SIGALRM, sys._getframe())

    def run(self):
        self.alarm()


class StopTest(unittest.TestCase):
    """Where the exception may be raised, the moment forced. A handler that was not entered arms the bare timer."""

    def setUp(self):
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, signal.SIG_IGN))
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)

    def test_it_is_raised_while_the_task_runs(self):
        with self.assertRaises(ShutdownRequested):
            AskedToStop().run()

    def test_a_heartbeat_under_way_is_let_through_first(self):
        seen = []

        class Handler(AskedToStop):
            def __init__(self):
                super().__init__()
                self._accept(Terms(queue_url="memory:", stop_at=lambda: 0.0 if seen else math.inf))

            def _extend_timeout(self, seconds):
                seen.append("begins")
                if len(seen) == 1:
                    self.alarm()
                seen.append("ends")

        handler = Handler()
        handler.alarm()
        self.assertEqual(["begins", "begins", "ends", "ends"], seen)
        with self.assertRaises(ShutdownRequested):
            handler.alarm()

    def test_nothing_is_raised_while_a_handler_is_left_that_the_task_uses_itself(self):
        left = []
        outer = AskedToStop()

        class Inner(MessageHandler):
            def __exit__(self, *exception):
                outer.alarm()
                left.append(self)
                return super().__exit__(*exception)

            def run(self):
                pass

        with Inner(LocalMessage("{}", {}), 30, 10, 60) as inner:
            inner.run()
        self.assertEqual([inner], left)


class NestedAlarmsTest(unittest.TestCase):
    def test_an_alarm_armed_by_a_signal_in_the_middle_of_arming_another_is_not_lost(self):
        outer, inner = Alarm(lambda *_: None), Alarm(lambda *_: None)
        outer.borrow(math.inf)
        self.addCleanup(outer.give_back)
        inner.borrow(50)
        self.addCleanup(inner.give_back)
        whole = inner.earliest

        def interrupted():
            earliest = whole()
            if inner.earliest is interrupted:
                del inner.earliest
                outer.arm(20)
            return earliest

        inner.earliest = interrupted
        inner.arm(40)
        self.assertLessEqual(signal.getitimer(signal.ITIMER_REAL)[0], 20)


class InIsolationTest(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_a_task_in_its_own_process_is_stopped_whole_and_its_message_given_back(self):
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        received = []

        class Queue(LocalQueue):
            def receive_messages(self, **kwargs):
                received.extend(more := super().receive_messages(**kwargs))
                return more

        class Task(ProcessMessageHandler):
            def run(self):
                try:
                    os.kill(os.getppid_of_worker, signal.SIGTERM)
                    time.sleep(60)
                finally:
                    os.write(writing, b"finally")

        worker_pid = os.getpid()
        os.getppid_of_worker = worker_pid
        self.addCleanup(delattr, os, "getppid_of_worker")
        manager = TaskManager(f"memory:{self.id()}", queue_constructor=Queue)
        manager.submit("T")
        counts = Worker(manager, {"T": Task}, wait_time=0, shutdown_grace=0.2).run()
        os.close(writing)
        self.assertEqual({"interrupted": 1}, counts)
        self.assertEqual([0], received[0].visibility_changes)
        self.assertEqual(b"finally", os.read(reading, 100))

    def test_a_task_that_is_told_to_stop_and_comes_to_its_end_is_done_with_slots_and_without(self):
        class Task(ProcessMessageHandler):
            def run(self):
                try:
                    os.kill(worker_pid, signal.SIGTERM)
                    time.sleep(60)
                except SystemExit:
                    return "all that was left to do"

        class Plain(MessageHandler):  # beside one of these nothing has slots
            run = Task.run

        worker_pid = os.getpid()
        for handlers in ({"T": Task}, {"T": Task, "Plain": Plain}):
            with self.subTest(list(handlers)):
                manager = TaskManager(f"memory:{self.id()}", queue_constructor=LocalQueue)
                manager.submit("T")
                self.assertEqual({"done": 1}, dict(Worker(manager, handlers, wait_time=0, shutdown_grace=0.2).run()))


WORKER = """
import logging, os, signal, sys, time
from sqstaskmaster import MessageHandler, ProcessMessageHandler, TaskManager, Worker

logging.basicConfig(level=logging.INFO, format="%(message)s")
url, base, settings = sys.argv[1], eval(sys.argv[2]), eval(sys.argv[3])


class Task(base):
    def __init__(self, message, sqs_timeout, alarm_timeout, hard_timeout, seconds=0):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout)
        self.seconds = seconds

    def run(self):
        print("started", os.getpid(), flush=True)
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            time.sleep(0.01)


manager = TaskManager(url)
manager.queue.meta.client.meta.events.register("before-send.sqs.ReceiveMessage", lambda **_: print("polling"))
worker = Worker(manager, {"Task": Task}, **settings)
print("counts", dict(worker.run()))
"""


class ProcessesTest(ServerTestCase):
    """Workers as processes of their own, against a real server."""

    def setUp(self):
        super().setUp()
        self.url = self.create_queue(visibility=60)

    def start(self, base="MessageHandler", url=None, **settings):
        return Script(self, WORKER, url or self.url, base, repr({"sqs_timeout": 60, **settings}))

    def start_each(self, urls=None, **settings):
        """(URL, worker) with each kind of handler, side by side, on a queue each."""
        urls = urls or [self.create_queue(visibility=60) for _ in range(2)]
        bases = ("MessageHandler", "ProcessMessageHandler")
        return [(url, self.start(base, url, **settings)) for base, url in zip(bases, urls)]

    def submit(self, url=None, **kwargs):
        TaskManager(url or self.url).submit("Task", **kwargs)

    def assert_visible_with_receive_count(self, count, url=None):
        (message,) = wait_until(lambda: self.receive(url or self.url), "the message is there for others", seconds=15)
        self.assertEqual(str(count), message["Attributes"]["ApproximateReceiveCount"])

    def test_idle_in_a_long_poll_it_ends_with_the_poll_and_strands_nothing(self):
        worker = self.start()
        worker.wait_for("polling")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("taking no more work")
        self.submit()  # which the poll under way brings
        worker.wait_for("counts {'given back': 1}")
        self.assertEqual(0, worker.process.wait(60))
        self.assert_visible_with_receive_count(2)

    def test_sighup_and_sigquit_stop_it_too_and_give_back_what_runs(self):
        for number in (signal.SIGHUP, signal.SIGQUIT):
            for url, worker in self.start_each(wait_time=1, shutdown_grace=0.2):
                with self.subTest(number):
                    self.submit(url, seconds=600)
                    worker.wait_for("started")
                    worker.process.send_signal(number)
                    worker.wait_for("counts {'interrupted': 1}")
                    self.assertEqual(0, worker.process.wait(60))
                    self.assert_visible_with_receive_count(2, url)

    def test_idle_with_nothing_to_do_it_ends_when_the_poll_ends(self):
        worker = self.start(wait_time=1)
        worker.wait_for("polling")
        self.assertEqual(0, worker.end(signal.SIGINT))
        self.assertIn("counts {}", worker.lines())

    def test_a_second_signal_abandons_the_poll(self):
        worker = self.start(wait_time=20)
        worker.wait_for("polling")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("taking no more work")
        started = awake_seconds()
        self.assertEqual(0, worker.end(signal.SIGTERM))
        self.assertLess(awake_seconds() - started, 10)

    def test_running_it_is_given_its_grace_and_its_heartbeat_then_stopped_and_given_back(self):
        both = self.start_each(sqs_timeout=2, alarm_timeout=0.5, shutdown_grace=4)
        for url, worker in both:
            self.submit(url, seconds=600)
            worker.wait_for("started")
        for _, worker in both:
            worker.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        while time.monotonic() < told + 3:  # longer than the visibility timeout
            for url, _ in both:
                self.assertEqual([], self.receive(url, wait=1))
        for url, worker in both:
            worker.wait_for("counts {'interrupted': 1}")
            self.assertGreater(time.monotonic() - told, 3.9)
            self.assertEqual(0, worker.process.wait(60))
            self.assert_visible_with_receive_count(2, url)

    def test_the_task_of_a_killed_worker_is_run_by_another(self):
        settings = {"sqs_timeout": 3, "alarm_timeout": 1, "wait_time": 1}
        both = self.start_each(**settings)
        for url, worker in both:
            self.submit(url, seconds=2)
            task = int(worker.wait_for("started").split()[1])
            worker.end(signal.SIGKILL)
            wait_until(lambda: not alive(task), "the task has gone with its worker", 10)
        for url, other in self.start_each([url for url, _ in both], **settings):
            other.wait_for("receive 2")
            other.end(signal.SIGTERM)
            self.assertEqual((0, 0, 0), self.counts(url))

    def test_as_process_1_it_stops_all_the_same(self):
        prefix = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
        if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
            self.skipTest("no PID namespaces to be had")
        source = f"import subprocess, sys; sys.exit(subprocess.call({prefix} + [sys.executable] + sys.argv[1:]))"
        body = f"import os\nprint('pid', os.getpid())\n{WORKER}"
        folder = Script(self, "pass")
        path = os.path.join(os.path.dirname(folder.path), "worker.py")
        with open(path, "w") as script:
            script.write(body + "\n")
        settings = {"wait_time": 1, "shutdown_grace": 0.2}
        outer = Script(self, source, "-u", path, self.url, "ProcessMessageHandler", repr(settings))
        outer.wait_for("pid 1")
        outer.wait_for("nobody reaps the processes that tasks leave behind")
        self.submit(seconds=600)
        outer.wait_for("started")
        (worker,) = [pid for pid in processes() if path in command_line(pid) and child_of_unshare(pid)]
        os.kill(worker, signal.SIGTERM)
        outer.wait_for("counts {'interrupted': 1}")
        self.assertEqual(0, outer.process.wait(60))


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as line:
            return line.read()
    except OSError:
        return ""


def child_of_unshare(pid):
    with open(f"/proc/{pid}/stat") as stat:
        parent = stat.read().rpartition(")")[2].split()[1]
    return command_line(int(parent)).startswith("unshare")


if __name__ == "__main__":
    unittest.main()
