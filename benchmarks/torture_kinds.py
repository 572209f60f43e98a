"""What tasks do to workers. Each kind is a function without arguments; the hung ones take 40 seconds or more."""

from __future__ import annotations

import collections
import ctypes
import hashlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time

HUNG_SECONDS = 40
LONG_SECONDS = 9


# Healthy tasks in the other slots, beside the watched one; they run longer than it can be late.
NEIGHBOURS = 7
NEIGHBOUR_SECONDS = 8


def nothing():
    pass


def neighbour():
    until = time.monotonic() + NEIGHBOUR_SECONDS
    while time.monotonic() < until:
        time.sleep(0.05)


# -- hung --------------------------------------------------------------------------------------------------------------


def busy(seconds=HUNG_SECONDS):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def sleep(seconds=HUNG_SECONDS):
    time.sleep(seconds)


def shell():
    subprocess.run(f"while :; do sleep 0.2; done & sleep {HUNG_SECONDS}", shell=True)


def c_with_gil():
    collections.deque(itertools.repeat(None), maxlen=0)


def c_without_gil():
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 2**31 - 1)


def regular_expression():
    re.match(r"(a+)+$", "a" * 64 + "b")


def blas():
    import numpy

    # Zeros take no memory until written to, and take as long to multiply as any other numbers.
    square = numpy.zeros((14_000, 14_000))
    square @ square


def swallow_exception():
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass


def swallow_everything(seconds=HUNG_SECONDS):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(0.01)
        except BaseException:
            pass


def alarm_blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    sleep()


def alarm_replaced():
    signal.signal(signal.SIGALRM, lambda signum, frame: None)
    sleep()


def deadlock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def endless_thread():
    thread = threading.Thread(target=sleep)
    thread.start()
    thread.join()


def daemon():
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            sleep()
        os._exit(0)
    os.waitpid(child, 0)
    sleep()


# -- what a task may leave to the one after it -------------------------------------------------------------------------


def block_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def close_descriptors():
    os.closerange(3, 256)


# -- crashes -----------------------------------------------------------------------------------------------------------


def segmentation_fault():
    ctypes.string_at(0)


def exit_1():
    os._exit(1)


def exit_0():
    os._exit(0)


def sys_exit():
    sys.exit()


def memory_error():
    bytearray(2**62)


def out_of_memory():
    # The kernel would send this. Really running out of memory would endanger everything else on the machine.
    os.kill(os.getpid(), signal.SIGKILL)


# -- long --------------------------------------------------------------------------------------------------------------


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def _c_call(library, seconds=LONG_SECONDS):
    """A C call that takes exactly this long and that no signal interrupts, unlike sleep() and poll()."""
    mutex = ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    nanoseconds = time.time_ns() + seconds * 10**9
    library.pthread_mutex_timedlock(mutex, ctypes.byref(_Timespec(*divmod(nanoseconds, 10**9))))


def long_c_with_gil():
    _c_call(ctypes.PyDLL(None))


def long_c_without_gil():
    _c_call(ctypes.CDLL(None))


def long_sleep():
    sleep(LONG_SECONDS)


def long_busy():
    busy(LONG_SECONDS)


def long_swallow():
    swallow_everything(LONG_SECONDS)


# -- the lists ---------------------------------------------------------------------------------------------------------

#: what the table calls it: (the task before it, the task)
HUNG = {
    "Python busy loop": (None, busy),
    "sleep": (None, sleep),
    "shell with a background loop": (None, shell),
    "C holding the GIL": (None, c_with_gil),
    "C releasing the GIL": (None, c_without_gil),
    "catastrophic regular expression": (None, regular_expression),
    "one large BLAS product": (None, blas),
    "except Exception: pass": (None, swallow_exception),
    "except BaseException: pass": (None, swallow_everything),
    "SIGALRM blocked": (None, alarm_blocked),
    "SIGALRM replaced": (None, alarm_replaced),
    "deadlock on a lock": (None, deadlock),
    "joining an endless thread": (None, endless_thread),
    "double-forked daemon": (None, daemon),
    "busy, after signals left blocked": (block_signals, busy),
    "busy, after descriptors closed": (close_descriptors, busy),
}
CRASHES = {
    "segmentation fault": segmentation_fault,
    "os._exit(1)": exit_1,
    "os._exit(0)": exit_0,
    "sys.exit()": sys_exit,
    "MemoryError": memory_error,
    "out-of-memory SIGKILL": out_of_memory,
}
LONG = {
    "long sleep": long_sleep,
    "long Python busy loop": long_busy,
    "long C holding the GIL": long_c_with_gil,
    "long C releasing the GIL": long_c_without_gil,
    "long except BaseException: pass": long_swallow,
}
WORKER_KILLED = {
    "worker killed, task in C": c_with_gil,
    "worker killed, task has a daemon": daemon,
}


def names():
    """The names of every task that may be sent to a worker."""
    listed = [nothing, neighbour]
    for group in (HUNG, CRASHES, LONG, WORKER_KILLED):
        for functions in group.values():
            listed += functions if isinstance(functions, tuple) else [functions]
    return sorted({function.__name__ for function in listed if function is not None})


#: Tasks that keep a processor busy: not too many of them run side by side.
HEAVY = {busy, c_with_gil, c_without_gil, regular_expression, blas, long_busy}
