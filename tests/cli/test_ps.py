"""`sqstaskmaster ps`: real workers, seen from another process."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

from sqstaskmaster._cli import tables
from sqstaskmaster._cli.ps import _notes, _picture
from sqstaskmaster._service import places, status
from tests.support import DEADLINE_SECONDS, ENVIRONMENT, wait_until
from tests.support.commands import Command, command, offline

TASKS = """
import os, time
from sqstaskmaster import MessageHandler, ProcessMessageHandler, TaskManager, Worker, current_task

worker = Worker(TaskManager("http://127.0.0.1:1/1/tasks"), hard_timeout=600)

@worker.task("Hang", term_grace=0.1)
def hang(go):
    kept = bytearray(os.urandom(1 << 20) * 32)
    current_task().report(done=3, of=4)
    print("hangs", flush=True)
    while not os.path.exists(go):
        time.sleep(0.01)

@worker.task("Exit")
def leave(go):
    print("hangs", flush=True)
    while not os.path.exists(go): time.sleep(0.01)
    os._exit(1)

@worker.task("Locked", term_grace=0.1)
def locked():
    import ctypes
    lock = ctypes.create_string_buffer(128)
    print("hangs", flush=True)
    ctypes.PyDLL(None).pthread_mutex_lock(lock)
    ctypes.PyDLL(None).pthread_mutex_lock(lock)  # C code that never returns, and holds the interpreter

class Plain(MessageHandler):  # in the worker's own process
    def __init__(self, message, go, **timeouts):
        super().__init__(message, **timeouts)
        self.go = go

    def run(self):
        current_task().report(done=3)
        print("hangs", flush=True)
        while not os.path.exists(self.go):
            time.sleep(0.01)

class Spawned(ProcessMessageHandler):  # no slot, but a process of its own
    def __init__(self, message, go, **timeouts):
        super().__init__(message, start_method="spawn", **timeouts)
        self.go = go

    run = Plain.run

def initialize():
    print("hangs", flush=True)
    while not os.path.exists("go"):
        time.sleep(0.01)

warm = Worker(TaskManager("http://127.0.0.1:1/1/tasks"), initializer=initialize, max_tasks_per_child=5)
warm.task("Hang", term_grace=0.1)(hang)

without_slots = Worker(TaskManager("http://127.0.0.1:1/1/tasks"), {"Plain": Plain, "Spawned": Spawned}, hard_timeout=60)
"""


IDLE = {"tasks": []}

# The command, which finds the workers of this folder and no others: those of the tests beside this one, say.
HERE_ONLY = """
import os, sys
from sqstaskmaster._cli import tables
from sqstaskmaster._cli.ps import _notes, _picture
from sqstaskmaster._service import places
places._LISTED = os.devnull
from sqstaskmaster._cli.main import main
sys.exit(main())
"""


def run_here(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", HERE_ONLY, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        env=offline(TMPDIR=str(folder)),
        stdin=subprocess.DEVNULL,
    )


def no_stop(order):
    raise AssertionError(order)


class RunningTasks(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        Path(self.folder, "tasks.py").write_text(TASKS)
        self.go = Path(self.folder, "go")

    def start(self, *task, name="worker"):
        worker = Command(self, "run", f"tasks:{name}", *task, cwd=self.folder, TMPDIR=self.folder, **ENVIRONMENT)
        worker.wait_for("hangs")
        return worker

    def ps(self, *arguments):
        finished = run_here(self.folder, "ps", *arguments)
        self.assertEqual(0, finished.returncode, finished.stderr)
        return finished.stdout

    def tasks(self, *arguments):
        return [task for worker in json.loads(self.ps("--json", *arguments)) for task in worker["tasks"]]


class PsTest(RunningTasks):
    def test_a_running_task_is_a_line_with_what_it_uses_and_has_reported(self):
        self.start("Hang", f"go={self.go}")
        wait_until(lambda: self.tasks()[0]["progress"], "its report has come")
        (task,) = self.tasks()
        self.assertEqual(("Hang", 0, {"done": 3, "of": 4}), (task["task"], task["slot"], task["progress"]))
        self.assertEqual(600, task["limit"])
        self.assertGreater(task["memory"], 32 << 20)
        self.assertLess(task["memory"], 100 << 20)
        self.assertRegex(self.ps(), r"\d+ +0  Hang  local-\d+ +\d+\.\d +600 +\d+\.\d MiB .*  done=3, of=4  here\n$")

    def test_a_process_whose_initializer_runs_is_told_with_its_limit_and_then_how_many_tasks_it_has_run(self):
        worker = self.start("Hang", "go=again", name="warm")
        self.assertRegex(self.ps(), r"\d+ +0  \(starting, \d+ s of 600\) +0 tasks run")
        self.go.touch()
        wait_until(lambda: worker.lines().count("hangs") == 2, "the task runs")
        self.assertRegex(self.ps(), r"\d+ +0  Hang  .*  done=3, of=4; 0 tasks run +here\n$")

    def test_where_a_task_is_is_shown_and_it_goes_on(self):
        worker = self.start("Hang", f"go={self.go}")
        shown = self.ps("--stacks")
        self.assertIn("in hang", shown)
        self.assertNotIn("process_handler.py", shown, "the frames of this package help nobody")
        self.go.touch()
        self.assertEqual(0, worker.process.wait(60))

    def test_a_task_that_ends_later_is_not_said_to_have_been_there(self):
        worker = self.start("Exit", f"go={self.go}")
        self.assertIn("time.sleep(0.01)", self.ps("--stacks"))
        self.go.touch()
        self.assertEqual(1, worker.process.wait(60))
        said = "\n".join(worker.lines())
        self.assertIn("TaskExited", said)
        self.assertNotIn("the task was here", said)

    def test_a_c_call_that_holds_the_interpreter_is_shown_too(self):
        worker = self.start("Locked")
        wait_until(lambda: "pthread_mutex_lock(lock)" in self.ps("--stacks"), "it is in the call")
        self.assertEqual("Locked", self.tasks()[0]["task"], "and it goes on")
        self.assertEqual(130, worker.stop(signal.SIGINT))

    def test_a_worker_without_slots_is_seen_too_with_its_task_and_where_that_is(self):
        for task in ("Plain", "Spawned"):
            with self.subTest(task):
                go = Path(self.folder, f"go-{task}")
                worker = self.start(task, f"go={go}", name="without_slots")
                wait_until(lambda: self.tasks()[0]["progress"] == {"done": 3}, "its report has come")
                (found,) = self.tasks("--stacks")
                self.assertEqual((task, 60, 1), (found["task"], found["limit"], found["receive_count"]))
                self.assertEqual(task == "Plain", found["pid"] == worker.process.pid)
                self.assertEqual(task == "Plain", found["memory"] is None)
                self.assertTrue(found["seconds"] >= 0 and found["cpu_seconds"] >= 0 and found["claim_age"] >= 0)
                self.assertRegex(found["stack"], r"in run\n" if task == "Plain" else r"in run\b")
                go.touch()
                self.assertEqual(0, worker.process.wait(60), worker.lines())
                self.assertNotIn("threads and is about to fork", "\n".join(worker.lines()))
        self.assertEqual([], list(Path(self.folder).glob("sqstaskmaster-*")))

    def test_a_worker_that_was_killed_leaves_a_socket_which_is_removed(self):
        worker = self.start("Locked")
        (folder,) = Path(self.folder).glob("sqstaskmaster-*")
        self.assertEqual(0o700, folder.stat().st_mode & 0o777)
        worker.stop(signal.SIGKILL)
        self.assertEqual(1, len(list(folder.iterdir())))
        self.assertEqual("[]\n", self.ps("--json"))
        self.assertEqual(0, len(list(folder.iterdir())))

    def test_a_worker_that_ends_leaves_nothing(self):
        worker = self.start("Hang", f"go={self.go}")
        self.go.touch()
        self.assertEqual(0, worker.process.wait(60))
        self.assertEqual([], list(Path(self.folder).glob("sqstaskmaster-*")))

    def test_a_worker_that_is_stopped_is_said_not_to_answer(self):
        worker = self.start("Locked")
        worker.process.send_signal(signal.SIGSTOP)
        self.addCleanup(worker.process.send_signal, signal.SIGCONT)
        self.assertIn("(does not answer)", self.ps())


class StopTest(RunningTasks):
    """`sqstaskmaster stop`: real workers, and a task of each kind."""

    def stop(self, *arguments):
        return run_here(self.folder, "stop", *arguments)

    def test_a_task_of_each_kind_is_stopped_and_its_end_is_told(self):
        for task, name in (("Hang", "worker"), ("Plain", "without_slots"), ("Spawned", "without_slots")):
            with self.subTest(task):
                worker = self.start(task, f"go={self.go}", name=name)
                wait_until(lambda: self.tasks(), "it is to be seen")
                finished = self.stop(self.tasks()[0]["message_id"], "--reason", "a test\x1b[2J")
                self.assertEqual((0, ""), (finished.returncode, finished.stderr))
                self.assertRegex(finished.stdout, rf"^Task {task} stopped: message local-\d+, receive 1, .*\n$")
                self.assertEqual(1, worker.process.wait(60))
                said = "\n".join(worker.lines())
                self.assertIn(f"Task {task} is stopped by sqstaskmaster stop, because: a test\\x1b[2J: message", said)
                self.assertNotIn("Traceback", said)

    def test_a_task_in_c_code_that_holds_the_interpreter_is_stopped_too(self):
        worker = self.start("Locked")
        finished = self.stop(self.tasks()[0]["message_id"])
        self.assertEqual((0, ""), (finished.returncode, finished.stderr))
        self.assertEqual(1, worker.process.wait(60))

    def test_a_message_that_no_worker_here_runs_is_an_error_that_says_where_to_look(self):
        self.start("Hang", f"go={self.go}")
        finished = self.stop("another")
        self.assertEqual((1, ""), (finished.returncode, finished.stdout))
        self.assertRegex(finished.stderr, "^sqstaskmaster: No worker here runs message another: .* ps")
        self.assertEqual(1, len(self.tasks()))

    def test_a_worker_that_is_frozen_is_told_apart_from_one_of_an_older_version(self):
        facts = {"tasks": [{"message_id": "a"}]}
        for answers, told in ((True, "is of a version that cannot stop a task"), (False, "does not answer")):
            with self.subTest(told), socket.socket(socket.AF_UNIX) as listening:
                folder = Path(self.folder, f"sqstaskmaster-{os.geteuid()}")
                folder.mkdir(mode=0o700, exist_ok=True)
                listening.bind(str(folder / f"{os.getpid()}-{answers}.sock"))
                listening.listen()
                connections = []

                def serve(answers=answers, listening=listening, connections=connections):
                    for place in range(2):
                        connection = listening.accept()[0]
                        connections.append(connection)
                        connection.recv(64)
                        if answers or not place:
                            connection.sendall(json.dumps(facts).encode())
                            connection.close()

                thread = threading.Thread(target=serve)
                thread.start()
                finished = self.stop("a")
                thread.join(60)
                for connection in connections:
                    connection.close()
                self.assertEqual(1, finished.returncode)
                self.assertIn(told, finished.stderr)


class LookupTest(RunningTasks):
    """Workers that this process would not find by its own TMPDIR, and what is told where none is found."""

    def workers(self, **environ):
        """The pids that `ps` shows, whatever else this machine runs."""
        finished = subprocess.run(
            [*command(), "ps", "--json"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            env=offline(**environ),
            cwd="/",
        )
        return [worker["worker"] for worker in json.loads(finished.stdout)]

    @unittest.skipUnless(os.path.exists(places._LISTED), "the system does not list sockets")
    def test_a_worker_with_another_tmpdir_is_found(self):
        worker = self.start("Hang", f"go={self.go}")
        with tempfile.TemporaryDirectory() as other:
            self.assertIn(worker.process.pid, self.workers(TMPDIR=other))

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("unshare"), "only root can mount a folder of its own")
    def test_a_worker_with_a_private_tmp_is_found_through_its_own_root(self):
        private = Path(self.folder, "private")
        private.mkdir()
        before = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {private} && exec "$@"', "sh")
        worker = Command(
            self,
            *("run", "tasks:worker", "Hang", f"go={self.go}"),
            cwd=self.folder,
            before=before,
            **{**ENVIRONMENT, "TMPDIR": str(private)},
        )
        worker.wait_for("hangs")
        self.assertEqual([], list(private.iterdir()), "it is not to be seen from here")
        self.assertIn(worker.process.pid, self.workers())

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("setpriv"), "only root can give up what it may do")
    def test_root_that_may_not_look_into_a_folder_says_so_and_exits_with_an_error(self):
        theirs = Path(self.folder, "sqstaskmaster-12345")
        theirs.mkdir(mode=0o700)
        os.chown(theirs, 12345, -1)
        without = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")
        finished = subprocess.run(
            [*without, sys.executable, "-c", HERE_ONLY, "ps"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            env=offline(TMPDIR=self.folder),
        )
        self.assertEqual(1, finished.returncode, finished.stderr)
        self.assertRegex(
            finished.stderr,
            f"Cannot look into {theirs}: Permission denied. Look as user 12345, or as root with CAP_DAC_OVERRIDE",
        )

    def test_where_no_worker_is_found_it_is_said_where_was_looked_and_for_whom(self):
        finished = run_here(self.folder, "ps", "--json")
        whose = "every user" if os.geteuid() == 0 else f"user {os.geteuid()}"
        self.assertEqual((0, "[]\n"), (finished.returncode, finished.stdout))
        self.assertIn(f"Found no worker: looked for workers of {whose} in {self.folder}/sqstask", finished.stderr)
        self.assertRegex(run_here(self.folder, "stop", "a").stderr, f"No worker here runs message a: looked .*{whose}")

    def test_the_watched_table_says_it_too(self):
        with mock.patch.object(places, "_LISTED", os.devnull), mock.patch("tempfile.gettempdir", lambda: self.folder):
            self.assertIn("\nFound no worker: looked for", tables.plain(_picture()))

    def listing(self, *paths):
        """As the kernel lists sockets at these paths."""
        listed = Path(self.folder, "unix")
        lines = ["Num       RefCount Protocol Flags    Type St Inode Path"]
        lines += [f"0000000065e80453: 00000002 00000000 00010000 0001 01 253647 {path}" for path in paths]
        listed.write_text("\n".join(lines) + "\n0000000065e80453: 00000002 00000000 00010000 0001 01 253647\n")
        for patch in (
            mock.patch.object(places, "_LISTED", str(listed)),
            mock.patch("tempfile.gettempdir", lambda: self.folder),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def test_a_worker_of_another_container_is_told_with_its_path(self):
        path = f"/no/such/sqstaskmaster-{os.geteuid()}/{os.getpid()}-1f.sock"
        self.listing(path, "@/a/sqstaskmaster-1/1-1.sock", "/a/sqstaskmaster-x/1-1.sock", "/run/other.sock")
        (trouble,) = places.look().troubles
        self.assertIn(path, trouble)

    def test_workers_of_other_users_are_counted_and_not_asked(self):
        self.listing("/tmp/sqstaskmaster-12345/7-1f.sock")
        with mock.patch("os.geteuid", lambda: 12346):
            found = places.look()
            self.assertEqual(([], [], [12345]), found)
            _, note = _notes([], found)
        self.assertIn("other users run here (12345)", note)

    def test_a_folder_that_is_listed_under_two_names_is_asked_once(self):
        folder = Path(self.folder, f"sqstaskmaster-{os.geteuid()}")
        folder.mkdir(mode=0o700)
        (folder / "7-1f.sock").touch()
        link = Path(self.folder, "link")
        link.symlink_to(self.folder)
        self.listing(link / folder.name / "7-1f.sock")
        self.assertEqual([(folder, os.geteuid())], places.look().places)


class StatusTest(unittest.TestCase):
    """The socket and its folder, in this process."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for patch in (
            mock.patch("tempfile.gettempdir", lambda: folder.name),
            mock.patch.object(places, "_LISTED", os.devnull),
        ):
            patch.start()
            self.addCleanup(patch.stop)
        self.folder = Path(folder.name, f"sqstaskmaster-{os.geteuid()}")

    def assert_refused(self):
        served = status.Status(lambda stacks: IDLE, no_stop)
        with self.assertLogs("sqstaskmaster.worker", "WARNING") as logged:
            served.open()
        self.assertIn(str(self.folder), logged.output[0])
        served.close()
        self.assertEqual([], status.ask())

    def test_a_folder_that_others_can_enter_is_not_used_and_the_worker_works_on(self):
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self.assert_refused()

    def test_a_link_is_not_followed(self):
        elsewhere = self.folder.with_name("elsewhere")
        elsewhere.mkdir(mode=0o700)
        self.folder.symlink_to(elsewhere)
        self.assert_refused()
        self.assertEqual([], list(elsewhere.iterdir()))

    @unittest.skipUnless(os.geteuid() == 0, "only root can give a folder to somebody else")
    def test_a_folder_of_somebody_elses_is_not_used(self):
        self.folder.mkdir(mode=0o700)
        os.chown(self.folder, 12345, -1)
        self.assert_refused()

    def test_what_others_have_prepared_is_neither_connected_to_nor_removed(self):
        elsewhere = self.folder.with_name("elsewhere")
        elsewhere.mkdir(mode=0o700)
        gone, there = elsewhere / "1-0.sock", elsewhere / "2-0.sock"
        gone.touch()  # a connection to it is refused, as to a socket that nobody listens on
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(there))
            listening.listen()
            listening.setblocking(False)
            self.folder.symlink_to(elsewhere)
            self.assert_refused()
            self.assertRaises(BlockingIOError, listening.accept)
        self.assertTrue(gone.exists())

    def test_a_socket_whose_name_is_no_worker_s_is_passed_over(self):
        self.folder.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.folder / "other.sock"))
            listening.listen()
            served = status.Status(lambda stacks: IDLE, no_stop)
            served.open()
            self.addCleanup(served.close)
            self.assertEqual([os.getpid()], [answer.pid for answer in status.ask()])

    @unittest.skipUnless(os.geteuid() == 0, "only root asks the workers of others")
    def test_root_removes_nothing_from_the_folder_of_somebody_else(self):
        theirs = self.folder.with_name("sqstaskmaster-12345")
        theirs.mkdir(mode=0o700)
        left = theirs / "1-0.sock"
        left.touch()
        os.chown(theirs, 12345, -1)
        self.assertEqual([], status.ask())
        self.assertTrue(left.exists())

    def test_what_is_asked_reaches_the_facts_and_what_is_no_json_arrives_as_its_repr(self):
        asked = []
        served = status.Status(lambda stacks: asked.append(stacks) or {"tasks": [{"progress": {1, 1}}]}, no_stop)
        served.open()
        self.addCleanup(served.close)
        self.assertEqual(
            [{"tasks": [{"progress": "{1}"}]}] * 2,
            [answer.said for each in (0, 1) for answer in status.ask(bool(each))],
        )
        self.assertEqual([False, True], asked)

    def test_somebody_who_connects_and_says_nothing_keeps_nobody_else_out_for_ever(self):
        with mock.patch.object(status, "_ANSWER_SECONDS", 0.2):
            served = status.Status(lambda stacks: IDLE, no_stop)
            served.open()
            self.addCleanup(served.close)
            with socket.socket(socket.AF_UNIX) as silent:
                silent.connect(str(next(self.folder.glob(f"{os.getpid()}-*.sock"))))
                wait_until(lambda: [answer.said for answer in status.ask()] == [IDLE], "the next is answered")

    def beside_a_healthy_worker(self, say):
        """What ps prints where there is one more socket, whose owner does as `say` does with each connection."""
        served = status.Status(lambda stacks: {"queues": ["http://a/1/healthy"], "tasks": []}, no_stop)
        served.open()
        self.addCleanup(served.close)
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.bind(str(self.folder / "1-bad.sock"))
        listening.listen()

        def serve():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(64)
                say(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        finished = run_here(self.folder.parent, "ps", "--stacks")
        self.assertLess(time.monotonic() - began, 30)
        thread.join(60)
        self.assertEqual((0, ""), (finished.returncode, finished.stderr))
        self.assertIn("healthy", finished.stdout)
        return finished.stdout

    def test_what_a_worker_says_reaches_the_terminal_through_the_filter_and_whatever_it_leaves_out(self):
        evil = "\x1b]0;owned\x07"
        tasks = [
            {},
            {"task": evil, "message_id": [evil], "seconds": "1", "memory": 10**4000, "progress": {evil: evil}},
            {"task": None, "stack": f"{evil}\n  x", "pid": evil, "slot": float("inf"), "limit": {}},
        ]
        said = {"tasks": tasks, "queues": [evil, 1], "worker": evil, "uid": evil}
        shown = self.beside_a_healthy_worker(lambda connection: connection.sendall(json.dumps(said).encode()))
        self.assertNotIn("\x1b", shown)
        self.assertNotIn("\x07", shown)
        self.assertIn("\\x1b]0;owned", shown)

    def test_a_worker_that_says_what_no_worker_says_hides_no_other(self):
        for said in ("[]", "{}", '{"tasks": 1}', '{"tasks": [1]}', "[" * 100_000, "", "\xff"):
            with self.subTest(said[:10]):
                shown = self.beside_a_healthy_worker(lambda connection: connection.sendall(said.encode("latin-1")))
                self.assertIn("(does not answer)", shown)
                self.doCleanups()
                self.setUp()

    def test_a_worker_that_says_a_byte_now_and_then_or_never_stops_hides_no_other(self):
        def dribble(connection):
            while True:
                connection.sendall(b" ")
                time.sleep(0.5)

        def flood(connection):
            while True:
                connection.sendall(b" " * (1 << 20))

        for say in (dribble, flood):
            with self.subTest(say.__name__):
                self.assertIn("(does not answer)", self.beside_a_healthy_worker(say))
                self.doCleanups()
                self.setUp()

    def test_facts_that_fail_are_logged_and_the_next_question_is_answered(self):
        answers = [lambda: IDLE, lambda: 1 / 0]
        served = status.Status(lambda stacks: answers.pop()(), no_stop)
        served.open()
        self.addCleanup(served.close)
        with self.assertLogs("sqstaskmaster.worker", "ERROR"):
            self.assertEqual([None], [answer.said for answer in status.ask()])
        self.assertEqual([IDLE], [answer.said for answer in status.ask()])

    def test_its_thread_ends_with_it(self):
        served = status.Status(lambda stacks: IDLE, no_stop)
        served.open()
        served.close()
        wait_until(lambda: not [t for t in threading.enumerate() if t.name == "sqstaskmaster-ps"], "it has ended")
        self.assertFalse(self.folder.exists())


if __name__ == "__main__":
    unittest.main()
