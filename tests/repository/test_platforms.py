"""Where the package cannot run tasks it can be imported, and used to send them; running says what is missing."""

import json
import subprocess
import sys
import unittest

# Python as Windows has it: what it lacks is taken away once the standard library is loaded.
AS_ON_WINDOWS = """
import asyncio, concurrent.futures, faulthandler, importlib, json, logging.handlers, multiprocessing.connection, os
import pkgutil, select, shutil, signal, socket, socketserver, subprocess, sys, tempfile, urllib.request, zipfile
import boto3

for module in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules[module] = None
kept = {"SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN"}
lacking = {
    signal: {name for name in dir(signal) if name.startswith("SIG")} - kept
    | {"getitimer", "ITIMER_REAL", "pause", "pidfd_send_signal", "pthread_kill", "pthread_sigmask", "setitimer"}
    | {"alarm", "sigpending", "sigtimedwait"},
    os: {"fork", "getuid", "getpgid", "getsid", "killpg", "memfd_create", "O_CLOEXEC", "pidfd_open", "register_at_fork"}
    | {"P_PID", "sched_getaffinity", "setpgid", "setsid", "sysconf", "wait4", "waitid", "WNOHANG", "WEXITED"},
    select: {"epoll", "poll", "POLLIN"},
    socket: {"AF_UNIX", "recv_fds", "send_fds", "SOCK_SEQPACKET"},
}
for module, names in lacking.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.platform = "win32"

import sqstaskmaster
for module in pkgutil.walk_packages(sqstaskmaster.__path__, "sqstaskmaster."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from sqstaskmaster import *

manager = TaskManager("local", None, LocalQueue)
manager.submit("T")
manager.submit_many([("T", {})])
worker = Worker(manager)
worker.task("T")(lambda: None)
said = [manager.queue.attributes["ApproximateNumberOfMessages"]]
plain, isolated = (type("H", (kind,), {"run": print}) for kind in (MessageHandler, ProcessMessageHandler))
for use in (
    lambda: worker.run(burst=True),
    lambda: Worker(manager, slots=2),
    plain(LocalMessage("{}"), 30, 10, 60).__enter__,
    isolated(LocalMessage("{}"), 30, 10, 60).__enter__,
):
    try:
        use()
    except UnsupportedContext as error:
        said.append(str(error))
print(json.dumps(said))
"""


class WindowsTest(unittest.TestCase):
    def test_all_can_be_imported_and_tasks_sent_and_running_says_what_is_missing(self):
        printed = subprocess.run([sys.executable, "-c", AS_ON_WINDOWS], stdout=-1, timeout=120, check=True).stdout
        sent, *said = json.loads(printed)
        self.assertEqual((2, 4), (sent, len(said)))
        for text in said:
            self.assertIn("Linux", text)


if __name__ == "__main__":
    unittest.main()
