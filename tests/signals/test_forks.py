"""What a task's process, or a worker's, has set for itself stays out of the processes that it forks."""

import contextlib
import faulthandler
import functools
import os
import signal
import subprocess
import sys
import unittest

from sqstaskmaster._isolation import child as isolation
from sqstaskmaster._isolation.task_side import STACK_SIGNAL
from sqstaskmaster._signals import forks, state
from tests.support import wait_until

SOON_SECONDS = 20

# A program whose functions round a fork are registered before the package's: in a child they run before those, and
# before a fork after them.
EARLY = """
import functools, os, signal

at_fork = {}
call = lambda name: at_fork.get(name, lambda: None)()
os.register_at_fork(before=functools.partial(call, "before"), after_in_child=functools.partial(call, "in_child"))

from sqstaskmaster._isolation import child as isolation

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def in_child(channel):
    at_fork["in_child"] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    return fork()

def before(channel):
    at_fork["before"] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    try:
        fork()
        signal.sigtimedwait((), 20)
    except SystemExit:
        return "raised"

for function in (in_child, before):
    child = isolation.Child(function, name="T")
    child.start()
    while not child.wait(20):
        pass
    print(child.result())
    child.close()
"""


def send_self(number):
    os.kill(os.getpid(), number)


def status_of_fork(body):
    """How a forked process ends that calls `body`: what os.waitstatus_to_exitcode makes of it."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def mask():
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


class ForkTest(unittest.TestCase):
    def in_task(self, function):
        child = isolation.Child(lambda channel: function(), name="T")
        self.addCleanup(child.close)
        child.start()
        self.addCleanup(child.kill)
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        return child

    def test_sigterm_that_comes_first_of_all_ends_what_a_task_has_forked_and_is_raised_in_the_task(self):
        printed = subprocess.run([sys.executable, "-c", EARLY], stdout=subprocess.PIPE, timeout=120, check=True).stdout
        self.assertEqual([str(-signal.SIGTERM), "raised"], printed.decode().split())

    def test_sigterm_right_after_the_fork_ends_what_a_task_has_forked(self):
        def task():
            os.register_at_fork(after_in_child=functools.partial(send_self, signal.SIGTERM))
            return status_of_fork(lambda: None)

        self.assertEqual(-signal.SIGTERM, self.in_task(task).result())

    def test_sigterm_that_waits_for_the_end_of_the_fork_is_raised_after_it(self):
        def task():
            forks._before()
            send_self(signal.SIGTERM)
            try:
                forks._in_parent()
                signal.sigtimedwait((), SOON_SECONDS)
            except SystemExit as ended:
                # Not out of the function that Python calls round a fork.
                return ended.__traceback__.tb_lineno == task.__code__.co_firstlineno + 5

        self.assertTrue(self.in_task(task).result())

    def test_a_handler_that_the_task_has_installed_stays_in_what_it_forks(self):
        def task():
            signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
            faulthandler.register(STACK_SIGNAL, file=open(os.devnull, "w"))
            return [status_of_fork(functools.partial(send_self, number)) for number in (signal.SIGTERM, STACK_SIGNAL)]

        self.assertEqual([7, 0], self.in_task(task).result())

    def test_what_a_task_forks_does_not_write_into_its_stack(self):
        def task():
            return [status_of_fork(functools.partial(send_self, number)) for number in (STACK_SIGNAL, signal.SIGSEGV)]

        child = self.in_task(task)
        self.assertEqual([-STACK_SIGNAL, -signal.SIGSEGV], child.result())
        self.assertEqual("", child.stack)

    def test_faulthandler_is_on_in_what_a_task_forks_where_it_was_on_in_the_worker(self):
        found = faulthandler.is_enabled()
        self.addCleanup(faulthandler.enable if found else faulthandler.disable)
        for switch in (faulthandler.disable, faulthandler.enable):
            with self.subTest(switch.__name__):
                switch()
                expected = faulthandler.is_enabled()
                forked = self.in_task(lambda: status_of_fork(lambda: os._exit(faulthandler.is_enabled()))).result()
                self.assertEqual(expected, bool(forked))

    def test_the_masks_of_a_task_and_of_what_it_forks_are_as_they_were(self):
        def task():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            expected = mask()
            seen = status_of_fork(lambda: os._exit(mask() == expected))
            return [sorted(expected), bool(seen), mask() == expected]

        self.assertEqual([[signal.SIGUSR1], True, True], self.in_task(task).result())

    def test_sigint_in_what_a_task_forks_is_pythons_own(self):
        def forked():
            with contextlib.suppress(KeyboardInterrupt):
                send_self(signal.SIGINT)
                os._exit(1)

        self.assertEqual(0, self.in_task(lambda: status_of_fork(forked)).result())

    def test_a_pool_of_processes_that_is_left_at_once_ends(self):
        def task():
            import multiprocessing

            for _ in range(20):
                with multiprocessing.get_context("fork").Pool(2) as pool:
                    pool.map(abs, [-1, -2])
            return "ended"

        self.assertEqual("ended", self.in_task(task).result())

    def test_a_handler_of_the_workers_stays_out_of_what_a_task_in_its_process_forks(self):
        seen = []
        handlers = state.Handlers(lambda *_: seen.append("handled"), signal.SIGTERM)
        found = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.addCleanup(signal.signal, signal.SIGTERM, found)
        handlers.install()
        try:
            self.assertEqual(-signal.SIGTERM, status_of_fork(functools.partial(send_self, signal.SIGTERM)))
            send_self(signal.SIGTERM)
            self.assertEqual(["handled"], seen)
        finally:
            handlers.put_back()


if __name__ == "__main__":
    unittest.main()
