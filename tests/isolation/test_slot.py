"""Slots in real processes: a template, keepers, spares, and tasks that do what they can to them."""

import contextlib
import errno
import hashlib
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import unittest
from unittest import mock

from sqstaskmaster._isolation import channel as channels
from sqstaskmaster._isolation import process_tree
from sqstaskmaster._isolation.slot import SlotLost
from sqstaskmaster._isolation.template import Template
from sqstaskmaster.errors import HardTimeout, TaskExited, TaskKilled, TaskNotStarted
from tests.isolation.test_task import MIB, SOON_SECONDS, alive, daemonise
from tests.support import DEADLINE_SECONDS, STARTS_A_DAEMON, Script, wait_until
from tests.support.descriptors import left_open, open_descriptors


def descriptors_of(pid):
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # that of the listing itself
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def stop(pid):
    """Have a process stand still, wherever it is."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process_tree._state_of(pid) == b"T", "it stands still", SOON_SECONDS)


def children(pid):
    return process_tree._children(pid)


# What this process had open before the template was forked.
inherited = set()


class Tasks:
    """What a task can do, by its order. They run in the task's process."""

    def echo(channel, words=b""):
        return words

    def tells(channel):
        return {"pid": os.getpid(), "keeper": os.getppid(), "group": os.getpgid(0), "session": os.getsid(0)}

    def hangs(channel):
        channel.report({"pid": os.getpid()})
        while True:
            signal.pause()

    def hangs_and_ignores(channel):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Tasks.hangs(channel)

    def raises(channel):
        raise HardTimeout("of its own")

    def waits_for_notice(channel):
        channel.report({"stopping": channel.stopping})
        channel._notice.poll()
        return channel.stopping

    def environment(channel, names):
        return {name: os.environ.get(name) for name in names.decode().split()}

    def digest(channel, content):
        return len(content), hashlib.sha256(content).hexdigest()

    def lists_descriptors(channel):
        return sorted(descriptors_of(os.getpid()).items())

    def spoils_every_descriptor(channel):
        for descriptor, target in descriptors_of(os.getpid()).items():
            if target in inherited:
                continue  # the test runner's
            with contextlib.suppress(OSError):
                os.set_blocking(descriptor, False)
                os.write(descriptor, b"\xff" * 100_000)
            with contextlib.suppress(OSError):
                socket.socket(fileno=os.dup(descriptor)).send(b"order")

    def closes_descriptors(channel):
        os.closerange(0, 4096)
        os._exit(4)

    def writes_half_a_verdict_and_is_killed(channel):
        os.write(channel._results, channels.HEADER.pack(channels.DONE, 1000) + b'"half')
        os.kill(os.getpid(), signal.SIGKILL)

    def makes_a_daemon(channel):
        return daemonise()

    def makes_a_daemon_and_kills_its_keeper(channel):
        channel.report({"daemon": daemonise()})
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()

    def stops_its_keeper_in_a_loop(channel):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        keeper = os.getppid()
        channel.report({"stopping": keeper})
        while True:
            os.kill(keeper, signal.SIGSTOP)

    def spoils_its_process(channel):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.chdir("/")
        os.environ["SPOILT"] = "yes"
        sys.modules["spoilt"] = sys
        os.umask(0o777)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    def process_state(channel):
        blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return os.getcwd(), os.environ.get("SPOILT"), "spoilt" in sys.modules, blocked, resource.getrlimit(7)

    def holds(channel):
        held = bytearray(os.urandom(MIB)) * 50
        return len(held)

    def a_process_it_forked_returns(channel):
        pid = os.fork()
        if pid == 0:
            return "the child's"
        os.waitpid(pid, 0)
        os._exit(5)


def perform(order, channel):
    name, _, content = order.partition(b" ")
    return getattr(Tasks, name.decode())(channel, *([content] if content else []))


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        logging.disable(logging.WARNING)
        cls.addClassCleanup(logging.disable, logging.NOTSET)
        inherited.update(descriptors_of(os.getpid()).values())
        cls.template = Template(perform)
        cls.template.start()
        cls.addClassCleanup(cls.template.close)

    def open_slot(self, template=None, **environment):
        slot = (template or self.template).open_slot(environment)
        self.addCleanup(self.close, slot)
        return slot

    def close(self, slot):
        slot.close()
        wait_until(lambda: not alive(slot.keeper), "the keeper is gone", SOON_SECONDS)

    def attend(self, running, seconds=0.05):
        events = select.poll()
        for descriptor in running.descriptors():
            events.register(descriptor, select.POLLIN)
        for descriptor, _ in events.poll(max(0, min(seconds, running.next_step_at - time.monotonic())) * 1000):
            running.read(descriptor)
        running.step()

    def attend_until(self, running, condition):
        def holds():
            self.attend(running)
            return condition()

        return wait_until(holds, "it holds", SOON_SECONDS)

    def start(self, slot, order, **options):
        return slot.start(order.encode() if isinstance(order, str) else order, name="T", **options)

    def finish(self, slot, order, **options):
        running = self.start(slot, order, **options)
        self.end(running)
        return running

    def end(self, running):
        def gone():
            if not running.gone:
                self.attend(running, 1)
            return running.gone

        wait_until(gone, "it is gone", SOON_SECONDS)

    def spare_of(self, slot, other_than=()):
        """The spare, once it waits for an order."""

        def found():
            spares = [pid for pid in children(slot.keeper) if pid not in other_than]
            return spares and "socket" in descriptors_of(spares[0]).values().__str__() and spares[0]

        return wait_until(found, "there is a spare", SOON_SECONDS)


class OrderTest(Case):
    def test_an_order_arrives_where_a_sandbox_refuses_files_in_memory(self):
        content = b"x" * (1 << 20)
        with mock.patch("os.memfd_create", side_effect=PermissionError):
            value = self.finish(self.open_slot(), b"digest " + content).result()
        self.assertEqual((len(content), hashlib.sha256(content).hexdigest()), tuple(value))

    def test_tasks_run_one_after_the_other_each_in_a_process_of_its_own_below_the_same_keeper(self):
        slot = self.open_slot()
        told = [self.finish(slot, "tells").result() for _ in range(3)]
        self.assertEqual(3, len({one["pid"] for one in told}))
        for one in told:
            self.assertEqual(one["pid"], one["group"])
            self.assertEqual(slot.keeper, one["session"])
            self.assertEqual(slot.keeper, one["keeper"])

    def test_a_start_returns_at_once_and_tasks_of_two_slots_run_beside_each_other(self):
        slots = [self.open_slot(), self.open_slot()]
        running = [self.start(slot, "hangs") for slot in slots]
        for one in running:
            self.attend_until(one, lambda one=one: one.progress)
        for one in running:
            one.kill()
            self.end(one)
            with self.assertRaises(TaskKilled):
                one.result()

    def test_an_order_of_a_mebibyte_arrives_whole_though_nobody_reads_yet(self):
        slot = self.open_slot()
        content = os.urandom(MIB)
        stop(slot.keeper)
        running = self.start(slot, b"digest " + content)
        os.kill(slot.keeper, signal.SIGCONT)
        self.end(running)
        self.assertEqual((len(content), hashlib.sha256(content).hexdigest()), running.result())

    def test_a_slot_s_environment_is_its_own(self):
        before = dict(os.environ)
        one, two = self.open_slot(DEVICE="0"), self.open_slot(DEVICE="1", OTHER="x")
        self.assertEqual({"DEVICE": "0", "OTHER": None}, self.finish(one, "environment DEVICE OTHER").result())
        self.assertEqual({"DEVICE": "1", "OTHER": "x"}, self.finish(two, "environment DEVICE OTHER").result())
        self.assertEqual(before, dict(os.environ))

    def test_an_environment_that_is_none_is_refused_by_name(self):
        for environment in ({"A": 1}, {1: "a"}, {"A=B": "c"}, {"": "c"}, {"A": "\0"}):
            with self.subTest(environment), self.assertRaisesRegex(TypeError, "environment"):
                self.template.open_slot(environment)

    def test_a_worker_may_have_thousands_of_descriptors_open(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1500)]
        try:
            template = Template(perform)
            template.start()
            self.addCleanup(template.close)
            slot = self.open_slot(template)
            self.assertGreater(slot.descriptor, 1024)
            self.assertEqual(b"x", self.finish(slot, "echo x").result())
        finally:
            for descriptor in many:
                os.close(descriptor)

    def test_an_exception_arrives_and_a_stop_is_told_and_raised(self):
        slot = self.open_slot()
        with self.assertRaisesRegex(HardTimeout, "of its own"):
            self.finish(slot, "raises").result()
        running = self.start(slot, "waits_for_notice")
        self.attend_until(running, lambda: running.progress)
        running.tell_stopping()
        self.end(running)
        self.assertIs(True, running.result())
        running = self.start(slot, "hangs", term_grace=SOON_SECONDS)
        self.attend_until(running, lambda: running.progress)
        running.stop()
        self.end(running)
        self.assertIn("in hangs", running.stack)
        with self.assertRaisesRegex(TaskKilled, "SIGTERM"):
            running.result()

    def test_a_task_that_ignores_its_stop_is_killed_after_its_grace(self):
        running = self.start(self.open_slot(), "hangs_and_ignores", term_grace=0.05)
        self.attend_until(running, lambda: running.progress)
        running.stop()
        self.end(running)
        with self.assertRaisesRegex(TaskKilled, "SIGKILL"):
            running.result()

    def test_a_task_s_usage_is_its_own_and_not_that_of_the_one_before(self):
        slot = self.open_slot()
        self.assertAlmostEqual(50, self.finish(slot, "holds").meter.usage.peak_memory / MIB, delta=8)
        self.assertLess(self.finish(slot, "echo x").meter.usage.peak_memory / MIB, 3)


class RoughTasksTest(Case):
    def ends_and_the_next_runs(self, order, slot=None):
        slot = slot or self.open_slot()
        running = self.finish(slot, order)
        self.assertEqual(b"next", self.finish(slot, "echo next").result())
        return running

    def test_a_task_that_writes_to_every_descriptor_spoils_nothing_but_its_own_verdict(self):
        beside = self.open_slot()
        running = self.ends_and_the_next_runs("spoils_every_descriptor")
        with self.assertRaises(TaskExited):
            running.result()
        self.assertEqual(b"beside", self.finish(beside, "echo beside").result())

    def test_a_task_that_closes_every_descriptor_has_failed_and_the_next_runs(self):
        with self.assertRaises(TaskExited) as caught:
            self.ends_and_the_next_runs("closes_descriptors").result()
        self.assertEqual(4, caught.exception.exit_code)

    def test_half_a_verdict_is_no_verdict_and_no_beginning_of_the_next(self):
        with self.assertRaises(TaskKilled):
            self.ends_and_the_next_runs("writes_half_a_verdict_and_is_killed").result()

    def test_a_daemon_of_a_task_ends_with_it(self):
        self.assertFalse(alive(self.ends_and_the_next_runs("makes_a_daemon").result()))

    def test_a_process_that_the_task_forked_and_that_returns_gives_no_verdict(self):
        with self.assertRaises(TaskExited) as caught:
            self.ends_and_the_next_runs("a_process_it_forked_returns").result()
        self.assertEqual(5, caught.exception.exit_code)

    def test_what_a_task_does_to_its_process_does_not_reach_the_next(self):
        slot = self.open_slot()
        before = self.finish(slot, "process_state").result()
        self.finish(slot, "spoils_its_process").result()
        self.assertEqual(before, self.finish(slot, "process_state").result())
        self.assertEqual([], before[3])

    def test_a_task_that_stops_its_keeper_in_a_loop_is_killed_and_the_next_runs(self):
        slot = self.open_slot()
        running = self.start(slot, "stops_its_keeper_in_a_loop", term_grace=0.05)
        self.attend_until(running, lambda: running.progress)
        running.stop()
        self.end(running)
        if running.keeper_spent:  # or the keeper itself could kill the task: which of the two is chance
            slot = self.open_slot()
        self.assertEqual(b"next", self.finish(slot, "echo next").result())

    def test_a_task_has_no_descriptor_of_its_keeper_or_of_another_slot(self):
        before = self.finish(self.open_slot(), "lists_descriptors").result()
        slots = [self.open_slot() for _ in range(4)]
        after = self.finish(slots[-1], "lists_descriptors").result()
        self.assertEqual(len(before), len(after))
        # Of its own: results, stack, notice.
        own = [target for _, target in after if target not in inherited]
        self.assertEqual(3, sum(target.startswith("pipe:") for target in own), own)
        self.assertEqual([], [target for target in own if target.startswith(("socket:", "anon_inode:"))])

    def test_two_hundred_tasks_in_one_slot_leak_no_descriptor_and_no_process(self):
        slot = self.open_slot()
        orders = ("echo x", "raises", "writes_half_a_verdict_and_is_killed", "closes_descriptors", "makes_a_daemon")
        for order in orders:
            self.finish(slot, order)
        before, waiting = open_descriptors(), self.descriptors_of_waiting(slot)
        for number in range(200):
            self.finish(slot, orders[number % len(orders)])
        self.assertEqual(set(), left_open(before))
        self.assertEqual(waiting, self.descriptors_of_waiting(slot))
        self.assertEqual(1, len(process_tree.descendants(slot.keeper)))

    def descriptors_of_waiting(self, slot):
        """How many the keeper has open while it waits: for its worker, its spare, an order."""
        self.spare_of(slot)

        def waiting():
            found = list(descriptors_of(slot.keeper).values())
            return found.count("anon_inode:[pidfd]") == 2 and len(found)

        return wait_until(waiting, "the keeper waits", SOON_SECONDS)


class KilledTest(Case):
    def order_for_a_stopped_spare(self):
        slot = self.open_slot()
        spare = self.spare_of(slot)
        stop(spare)
        running = self.start(slot, "tells")
        self.attend_until(running, lambda: running.pid == spare)
        return slot, spare, running

    def test_a_spare_that_is_killed_while_it_waits_is_replaced(self):
        slot = self.open_slot()
        spare = self.spare_of(slot)
        for number in (signal.SIGKILL, signal.SIGTERM):
            os.kill(spare, number)
            spare = self.spare_of(slot, other_than=(spare,))
        self.assertTrue(slot.alive)
        self.assertEqual(b"x", self.finish(slot, "echo x").result())

    def test_an_order_that_a_killed_spare_had_not_taken_is_run_by_the_next(self):
        slot, spare, running = self.order_for_a_stopped_spare()
        os.kill(spare, signal.SIGKILL)
        self.end(running)
        self.assertEqual(running.pid, running.result()["pid"])
        self.assertNotEqual(spare, running.pid)

    def test_an_order_that_was_told_to_stop_before_it_was_taken_is_never_run(self):
        slot, spare, running = self.order_for_a_stopped_spare()
        lifeline = os.dup(running._ends.lifeline)  # so that its end does not do what the order has to
        self.addCleanup(os.close, lifeline)
        running.kill()
        self.end(running)
        with self.assertRaises(TaskKilled):
            running.result()
        self.assertEqual(b"next", self.finish(slot, "echo next").result())

    def test_a_slot_whose_idle_keeper_was_killed_says_so_and_leaves_no_spare(self):
        slot = self.open_slot()
        spare = self.spare_of(slot)
        os.kill(slot.keeper, signal.SIGKILL)
        self.assertTrue(select.select([slot.descriptor], [], [], SOON_SECONDS)[0])
        self.assertFalse(slot.alive)
        before = open_descriptors()
        with self.assertRaisesRegex(SlotLost, "open another slot"):
            self.start(slot, "tells")
        self.assertEqual(set(), left_open(before))
        wait_until(lambda: not alive(spare), "the spare is gone", SOON_SECONDS)
        self.assertEqual(b"x", self.finish(self.open_slot(), "echo x").result())

    def test_a_keeper_that_is_killed_as_the_order_is_written_is_a_lost_slot(self):
        slot = self.open_slot()
        spare = self.spare_of(slot)
        os.kill(slot.keeper, signal.SIGKILL)
        # Its spare could still read the order.
        wait_until(lambda: not alive(slot.keeper) and not alive(spare), "both are gone", SOON_SECONDS)
        with mock.patch.object(type(slot), "alive", True), self.assertRaises(SlotLost):
            self.start(slot, "tells")

    def test_a_task_and_its_daemon_end_though_it_killed_its_keeper(self):
        slot = self.open_slot()
        running = self.finish(slot, "makes_a_daemon_and_kills_its_keeper")
        with self.assertRaises(TaskKilled) as caught:
            running.result()
        self.assertIsNone(caught.exception.signal)
        self.assertFalse(alive(running.progress["daemon"]))
        self.assertFalse(alive(running.pid))
        self.assertFalse(slot.alive)

    def test_a_keeper_that_is_killed_while_it_is_stopped_with_an_order_is_told_of(self):
        slot = self.open_slot()
        stop(slot.keeper)
        running = self.start(slot, "tells")
        os.kill(slot.keeper, signal.SIGKILL)
        self.end(running)
        with self.assertRaises(TaskKilled):
            running.result()

    def test_closing_a_slot_kills_what_it_runs(self):
        slot = self.open_slot()
        running = self.start(slot, "hangs")
        self.attend_until(running, lambda: running.progress)
        slot.close()
        self.assertFalse(slot.alive)
        running.kill()
        self.end(running)
        wait_until(lambda: not alive(slot.keeper), "the keeper is gone", SOON_SECONDS)

    def test_a_template_that_was_killed_is_an_error_and_open_slots_go_on(self):
        template = Template(perform)
        template.start()
        self.addCleanup(template.close)
        slot = self.open_slot(template)
        os.kill(template.pid, signal.SIGKILL)
        with self.assertRaisesRegex(SlotLost, "template"):
            template.open_slot({})
        with self.assertRaisesRegex(SlotLost, "template"):
            template.open_slot({})
        self.assertEqual(b"x", self.finish(slot, "echo x").result())

    def test_without_proc_a_daemon_holds_neither_the_worker_nor_the_slot(self):
        with (
            mock.patch.object(process_tree, "can_list", lambda: False),
            mock.patch.object(process_tree, "descendants", lambda pid: []),
            mock.patch.object(process_tree, "_BLIND_SECONDS", 0.05),
        ):
            template = Template(perform)  # what it forks has it so too
            template.start()
            self.addCleanup(template.close)
            slot = self.open_slot(template)
            daemon = self.finish(slot, "makes_a_daemon").result()
            self.addCleanup(process_tree.kill, daemon, signal.SIGKILL)
            self.assertEqual(b"next", self.finish(slot, "echo next").result())

    def test_a_worker_that_is_killed_takes_template_keepers_tasks_and_daemons_along(self):
        script = Script(self, KILLED_WORKER)
        holder, *pids = [int(pid) for pid in script.wait_for("pids").split()[1:]]
        self.addCleanup(process_tree.kill, holder, signal.SIGKILL)
        self.assertEqual(7, len(pids))
        self.assertTrue(all(alive(pid) for pid in pids))
        script.end()
        wait_until(lambda: not any(alive(pid) for pid in pids), "all of them are gone", SOON_SECONDS)


KILLED_WORKER = STARTS_A_DAEMON + """
import select, time
from sqstaskmaster._isolation import process_tree
from sqstaskmaster._isolation.template import Template

def perform(order, channel):
    channel.report({"task": os.getpid(), "daemon": start_a_daemon()})
    signal.pause()

template = Template(perform)
template.start()
busy, idle = template.open_slot({}), template.open_slot({})
running = busy.start(b"x", name="T")
while not running.progress:
    running.read(select.select(running.descriptors(), [], [])[0][0])
while not process_tree.descendants(idle.keeper):
    time.sleep(0.01)
holder = os.fork()  # has inherited the worker's end of each socket and pipe, which therefore do not end with it
if holder == 0:
    os.setsid()
    time.sleep(600)
    os._exit(0)
spare, = process_tree.descendants(idle.keeper)
pids = [holder, template.pid, busy.keeper, idle.keeper, spare, *running.progress.values(), os.getpid()]
print("pids", *pids, flush=True)
time.sleep(3600)
"""


class ShortOfProcessesTest(Case):
    def template_short_of_processes(self, *refused):
        """With these forks refused, counted along each line: the template's, a keeper's, its spares'."""
        fork, calls = os.fork, []

        def fork_unless_refused():
            calls.append(1)  # each process has its own copy of the count
            if len(calls) in refused:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return fork()

        with mock.patch.object(os, "fork", fork_unless_refused):
            template = Template(perform)
            template.start()
        self.addCleanup(template.close)
        return template

    def test_a_spare_that_cannot_be_forked_is_tried_again_and_an_order_meanwhile_is_told_why(self):
        template = self.template_short_of_processes(3, 4, 5, 6)
        slot = self.open_slot(template)
        running = self.finish(slot, "echo x")
        with self.assertRaisesRegex(TaskNotStarted, "Resource temporarily unavailable"):
            running.result()

        def runs():
            with contextlib.suppress(TaskNotStarted):
                return self.finish(slot, "echo x").result()

        self.assertEqual(b"x", wait_until(runs, "a task runs", SOON_SECONDS))

    def test_a_keeper_that_cannot_be_forked_is_an_error_with_the_system_s_words(self):
        template = self.template_short_of_processes(2)
        before = open_descriptors()
        with self.assertRaisesRegex(OSError, "Resource temporarily unavailable"):
            template.open_slot({})
        self.assertEqual(set(), left_open(before))
        self.assertEqual(b"x", self.finish(self.open_slot(template), "echo x").result())

    def test_a_worker_without_descriptors_left_starts_nothing_and_leaks_none(self):
        slot = self.open_slot()
        before = open_descriptors()
        few = min(len(before), max(before)) + 1  # that with which they are listed too
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for more in range(0, 12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (few + more, hard))
            with contextlib.suppress(OSError):
                self.end(self.start(slot, "echo x"))
            self.assertEqual(set(), left_open(before))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertEqual(b"x", self.finish(slot, "echo x").result())

    def test_a_keeper_without_descriptors_left_for_an_order_ends_with_its_spare(self):
        slot = self.open_slot()
        spare = self.spare_of(slot)
        _, hard = resource.prlimit(slot.keeper, resource.RLIMIT_NOFILE)
        taken = set(map(int, os.listdir(f"/proc/{slot.keeper}/fd")))
        free = [number for number in range(100) if number not in taken]
        # For three of the six that come with an order.
        resource.prlimit(slot.keeper, resource.RLIMIT_NOFILE, (free[3], hard))
        with self.assertRaises(TaskKilled):
            self.finish(slot, "echo x").result()
        wait_until(lambda: not slot.alive and not alive(spare), "both are gone", SOON_SECONDS)


class TemplateTest(Case):
    def test_a_worker_with_threads_is_warned_by_name_before_it_forks(self):
        logging.disable(logging.NOTSET)
        self.addCleanup(logging.disable, logging.WARNING)
        ended = threading.Event()
        thread = threading.Thread(target=ended.wait, args=(DEADLINE_SECONDS,), name="metrics-pusher")
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(ended.set)
        template = Template(perform)
        with self.assertLogs("sqstaskmaster._isolation.template", "WARNING") as logs:
            template.start()
        template.close()
        self.assertIn("metrics-pusher", logs.output[0])

    def test_a_template_that_was_not_started_has_no_slots(self):
        with self.assertRaises(SlotLost):
            Template(perform).open_slot({})

    def test_a_template_leaves_no_descriptor_and_no_process(self):
        before = open_descriptors()
        template = Template(perform)
        template.start()
        slot = self.open_slot(template)
        pid = template.pid
        template.close()
        self.close(slot)
        self.assertFalse(alive(pid))
        self.assertEqual(set(), left_open(before))

    def test_one_that_a_task_has_stopped_does_not_hold_the_worker_s_end(self):
        template = Template(perform)
        template.start()
        pid = template.pid
        stop(pid)
        with mock.patch("sqstaskmaster._isolation.template._END_SECONDS", 0.1):
            template.close()
        self.assertFalse(alive(pid))

    def test_what_the_worker_holds_later_is_not_in_its_tasks(self):
        held = bytearray(os.urandom(MIB)) * 100
        slot = self.open_slot()

        def resident(pid):
            return process_tree.resident_of(pid)

        self.assertLess(resident(self.spare_of(slot)), resident(os.getpid()) - len(held) // 2)


if __name__ == "__main__":
    unittest.main()
