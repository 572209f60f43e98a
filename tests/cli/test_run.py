"""`sqstaskmaster run`: one task, here and now, with neither queue nor server."""

import codecs
import json
import os
import pty
import re
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

from tests.support import DEADLINE_SECONDS, ENVIRONMENT, stop
from tests.support.commands import Command, command, offline, read, run

TASKS = """
import os, sys
from sqstaskmaster import Continue, DeadLetter, MessageHandler, TaskManager, Worker, current_task

worker = Worker(
    TaskManager("http://127.0.0.1:1/1/tasks"),
    on_start=lambda: print("on_start"),
    on_finish=lambda finished: print("on_finish"),
)

@worker.task("Add")
def add(a, b=1):
    print("sum", a + b, os.getpid())

@worker.task("Stop")
def stop():
    breakpoint()

@worker.task("Hang", hard_timeout=2, term_grace=0.1)
def hang():
    import ctypes
    ctypes.PyDLL(None).sleep(3600)

@worker.task("Crash")
def crash():
    import ctypes
    ctypes.string_at(0)

@worker.task("Exit")
def exit():
    os._exit(0)

@worker.task("Big", max_memory=64 << 20)
def big():
    import time
    kept = bytearray(os.urandom(1 << 20) * 256)
    time.sleep(3600)

@worker.task("Steps")
def steps(step=0):
    print("step", step, current_task().message_attributes.get("a", {}).get("StringValue"))
    if step < 2:
        raise Continue.after(900, step=step + 1)

@worker.task("Hopeless")
def hopeless():
    raise DeadLetter("nobody can")

@worker.task("Report")
def report(go):
    import time
    current_task().report(done=1, of=2)
    while not os.path.exists(go): time.sleep(0.01)

@worker.task("Bytes")
def attributes():
    print(current_task().message_attributes["b"]["BinaryValue"])

@worker.task("Wait")
def wait():
    import time
    print("waits", flush=True)
    time.sleep(3600)

class Plain(MessageHandler):
    def __init__(self, message, **timeouts):
        super().__init__(message, **timeouts)

    def run(self):
        if "STOP" in os.environ: breakpoint()
        print("plain", current_task().name, os.getpid())

plain = Worker(TaskManager("http://127.0.0.1:1/1/tasks"), {"Plain": Plain})

spawning = Worker(TaskManager("http://127.0.0.1:1/1/tasks"))
spawning.task("Stop", start_method="spawn")(stop)
"""


class RunTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        Path(self.folder, "tasks.py").write_text(TASKS)

    def run_task(self, *arguments, name="worker", code=0, **options):
        finished = run("run", f"tasks:{name}", *arguments, environ=offline(**ENVIRONMENT), cwd=self.folder, **options)
        self.assertEqual(code, finished.returncode, finished.stdout + finished.stderr)
        return finished

    def test_breakpoint_stops_the_task_in_the_debugger_on_this_terminal(self):
        for name, task in (("worker", "Stop"), ("spawning", "Stop"), ("plain", "Plain")):
            with self.subTest(name):
                ours, theirs = pty.openpty()
                self.addCleanup(os.close, ours)
                process = subprocess.Popen(
                    [*command(), "run", f"tasks:{name}", task],
                    **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
                    env=offline(**ENVIRONMENT, STOP="1"),
                    cwd=self.folder,
                    start_new_session=True,
                )
                self.addCleanup(stop, process)
                os.close(theirs)
                read(ours, "(Pdb)")
                os.write(ours, b"p 40 + 2\nc\n")
                self.assertIn("42", read(ours))
                self.assertEqual(0, process.wait(DEADLINE_SECONDS))

    def test_a_body_with_a_byte_order_mark_is_read(self):
        body = codecs.BOM_UTF8 + json.dumps({"task": "Add", "kwargs": {"a": 4}}).encode()
        Path(self.folder, "body.json").write_bytes(body)
        self.assertIn("sum 5", self.run_task("--body", "body.json").stdout)

    def test_a_misspelt_argument_is_named_before_the_one_that_is_missing_for_it(self):
        for given in (["aa=1"], ["a=1", "aa=1"]):
            self.assertIn("unexpected keyword argument 'aa'", self.run_task("Add", *given, code=2).stderr)

    def test_a_task_that_is_done_exits_with_0_and_says_what_a_worker_says(self):
        finished = self.run_task("Add", "a=1", "--json", '{"b": 2}')
        self.assertRegex(finished.stdout, r"^sum 3 \d+\n$")
        self.assertRegex(finished.stderr, r"Task Add done: message local-\d+, receive 1, .*, CPU .* s, peak memory ")

    def test_a_module_that_configures_logging_as_python_documents_it_does_not_silence_the_library(self):
        with Path(self.folder, "tasks.py").open("a") as tasks:
            tasks.write("import logging.config\nlogging.config.dictConfig({'version': 1})\n")
        self.assertIn("Task Add done", self.run_task("Add", "a=1").stderr)

    def test_a_task_that_hangs_in_c_is_stopped_at_its_limit_and_shown_where(self):
        said = self.run_task("Hang", code=1).stderr
        line = r"Task Hang timed out: stopped at its limit, gone after (\d+\.\d) s\n"
        self.assertRegex(said, line)
        self.assertGreaterEqual(float(re.search(line, said)[1]), 2)
        self.assertIn("ctypes.PyDLL(None).sleep(3600)", said)

    def test_a_task_that_crashes_is_shown_where(self):
        said = self.run_task("Crash", code=1).stderr
        self.assertIn("SIGSEGV", said)
        self.assertIn("ctypes.string_at(0)", said)

    def test_only_a_task_that_says_it_is_done_exits_with_0(self):
        self.assertIn("TaskExited", self.run_task("Exit", code=1).stderr)

    def test_max_memory_holds(self):
        self.assertIn("MemoryLimitExceeded", self.run_task("Big", code=1).stderr)

    def test_a_task_that_continues_is_run_to_its_end_without_its_delays(self):
        finished = self.run_task("Steps")
        self.assertEqual(["step 0 None", "step 1 None", "step 2 None"], finished.stdout.splitlines())
        self.assertIn("continuation 2", finished.stderr)

    def test_a_dead_letter_is_one_and_nothing_is_said_of_coming_back(self):
        said = self.run_task("Hopeless", code=1).stderr
        self.assertIn("Task Hopeless dead-lettered: DeadLetter: nobody can\n", said)
        self.assertNotIn("comes back", said)

    def test_a_message_is_run_as_it_was_in_the_queue(self):
        body = json.dumps({"task": "Steps", "kwargs": {"step": 2}})
        printed = {"id": "1", "body": body, "message_attributes": {"a": {"DataType": "String", "StringValue": "b"}}}
        for content, out in ((body, "step 2 None\n"), (json.dumps(printed), "step 2 b\n")):
            with self.subTest(content):
                self.assertEqual(out, self.run_task("--body", "-", stdin=None, input=content).stdout)

    def test_what_the_task_reports_is_said_while_it_runs(self):
        go = Path(self.folder, "go")
        command = Command(self, "run", "tasks:worker", "Report", f"go={go}", cwd=self.folder)
        self.assertRegex(command.wait_for("done=1"), r"Task Report after \d+\.\d s: done=1, of=2$")
        go.touch()
        self.assertEqual(0, command.process.wait(DEADLINE_SECONDS))
        self.assertEqual(1, sum("done=1" in line for line in command.lines()), "once")

    def test_bytes_come_as_dead_prints_them(self):
        for value, code, text in (("AP8=", 0, "b'\\x00\\xff'\n"), ("no base64", 2, "a BinaryValue in base64")):
            attributes = {"b": {"DataType": "Binary", "BinaryValue": value}}
            content = json.dumps({"body": '{"task": "Bytes", "kwargs": {}}', "message_attributes": attributes})
            with self.subTest(value):
                finished = self.run_task("--body", "-", stdin=None, input=content, code=code)
                self.assertIn(text, finished.stdout + finished.stderr)

    def test_more_than_one_message_is_refused_with_the_remedy(self):
        finished = self.run_task("--body", "-", stdin=None, input='{"body": "{}"}\n{"body": "{}"}\n', code=2)
        self.assertIn("dead URL --json --id ID", finished.stderr)

    def test_what_the_worker_would_refuse_is_refused_before_anything_runs(self):
        for arguments, text in (
            (["Sub"], "No task 'Sub'"),
            (["Add"], "missing a required argument: 'a'"),
            ([], "give a TASK name"),
            (["a=1"], "stands where the TASK name belongs"),
            (["Add", "--body", "-"], "leave out TASK"),
            (["--body", "nowhere.json"], "nowhere.json"),
        ):
            with self.subTest(arguments):
                finished = self.run_task(*arguments, code=2)
                self.assertIn(text, finished.stderr)
                self.assertEqual(1, len(finished.stderr.splitlines()), finished.stderr)

    def test_a_plain_handler_runs_in_the_commands_own_process(self):
        finished = self.run_task("Plain", name="plain")
        self.assertRegex(finished.stdout, r"^plain Plain \d+\n$")
        self.assertIn("Task Plain done", finished.stderr)

    def test_ctrl_c_stops_it_at_once_and_its_output_has_come_before(self):
        command = Command(self, "run", "tasks:worker", "Wait", cwd=self.folder)
        command.wait_for("waits")
        self.assertEqual(130, command.stop(signal.SIGINT))
        self.assertTrue(any("Task Wait interrupted" in line for line in command.lines()), command.lines())


if __name__ == "__main__":
    unittest.main()
