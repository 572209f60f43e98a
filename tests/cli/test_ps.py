"""`sqstaskmaster ps`: real workers, seen from another process."""

import json
import os
import signal
import socket
import tempfile
import threading
import unittest
from pathlib import Path
from unittest import mock

from sqstaskmaster._service import status
from tests.support import ENVIRONMENT, wait_until
from tests.support.commands import Command, offline, run

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

without_slots = Worker(TaskManager("http://127.0.0.1:1/1/tasks"), {"Plain": Plain, "Spawned": Spawned}, hard_timeout=60)
"""


class PsTest(unittest.TestCase):
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
        finished = run("ps", *arguments, environ=offline(TMPDIR=self.folder))
        self.assertEqual(0, finished.returncode, finished.stderr)
        return finished.stdout

    def tasks(self, *arguments):
        return [task for worker in json.loads(self.ps("--json", *arguments)) for task in worker["tasks"]]

    def test_a_running_task_is_a_line_with_what_it_uses_and_has_reported(self):
        self.start("Hang", f"go={self.go}")
        wait_until(lambda: self.tasks()[0]["progress"], "its report has come")
        (task,) = self.tasks()
        self.assertEqual(("Hang", 0, {"done": 3, "of": 4}), (task["task"], task["slot"], task["progress"]))
        self.assertEqual(600, task["limit"])
        self.assertGreater(task["memory"], 32 << 20)
        self.assertLess(task["memory"], 100 << 20)
        self.assertRegex(self.ps(), r"\d+ +0  Hang  local-\d+ +\d+\.\d +600 +\d+\.\d MiB .*  done=3, of=4\n$")

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


class StatusTest(unittest.TestCase):
    """The socket and its folder, in this process."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        patch = mock.patch("tempfile.gettempdir", lambda: folder.name)
        patch.start()
        self.addCleanup(patch.stop)
        self.folder = Path(folder.name, f"sqstaskmaster-{os.geteuid()}")

    def assert_refused(self):
        served = status.Status(lambda stacks: {})
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
            served = status.Status(lambda stacks: {})
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
        served = status.Status(lambda stacks: asked.append(stacks) or {"progress": {1, 1}})
        served.open()
        self.addCleanup(served.close)
        self.assertEqual(
            [{"progress": "{1}"}] * 2, [answer.said for each in (0, 1) for answer in status.ask(bool(each))]
        )
        self.assertEqual([False, True], asked)

    def test_somebody_who_connects_and_says_nothing_keeps_nobody_else_out_for_ever(self):
        with mock.patch.object(status, "_ANSWER_SECONDS", 0.2):
            served = status.Status(lambda stacks: {})
            served.open()
            self.addCleanup(served.close)
            with socket.socket(socket.AF_UNIX) as silent:
                silent.connect(str(next(self.folder.glob(f"{os.getpid()}-*.sock"))))
                wait_until(lambda: [answer.said for answer in status.ask()] == [{}], "the next is answered")

    def test_facts_that_fail_are_logged_and_the_next_question_is_answered(self):
        answers = [lambda: {}, lambda: 1 / 0]
        served = status.Status(lambda stacks: answers.pop()())
        served.open()
        self.addCleanup(served.close)
        with self.assertLogs("sqstaskmaster.worker", "ERROR"):
            self.assertEqual([None], [answer.said for answer in status.ask()])
        self.assertEqual([{}], [answer.said for answer in status.ask()])

    def test_its_thread_ends_with_it(self):
        served = status.Status(lambda stacks: {})
        served.open()
        served.close()
        wait_until(lambda: not [t for t in threading.enumerate() if t.name == "sqstaskmaster-ps"], "it has ended")
        self.assertFalse(self.folder.exists())


if __name__ == "__main__":
    unittest.main()
