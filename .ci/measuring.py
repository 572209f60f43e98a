"""A plugin for coverage, in each process that is measured: what it needs to know of programs like ours.

Signal handlers that raise: coverage takes a lock of its own whenever a function is called. An exception of a handler
that lands there leaves it locked, and the next call waits for ever. What it guards is one insertion into a dictionary,
which the interpreter's own lock guards as well.

Threads: threading.settrace does not reach those that are started without that module.
"""

import _thread
import sys
import threading

from coverage.collector import Collector


def coverage_init(registry, options):
    Collector.lock_data = Collector.unlock_data = lambda self: None
    _thread.start_new_thread = _start_traced


_start = _thread.start_new_thread


def _start_traced(function, arguments):
    def traced():
        sys.settrace(threading.gettrace())
        function(*arguments)

    return _start(traced, ())
