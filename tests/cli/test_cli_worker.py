"""`sqstaskmaster worker` as a container starts it: the installed command, a real SQS server, real signals."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.guard import awake_seconds
from tests.support import DEADLINE_SECONDS, ENVIRONMENT, ServerTestCase, free_port, stop, wait_until
from tests.support.commands import Command, alive, command, offline, online, run

# Longer than any test: a message that is seen before this was given back.
LONG = 600

TASKS = """
import os, time
from sqstaskmaster import MessageHandler, ProcessMessageHandler, TaskManager
from sqstaskmaster.worker import Worker

class Task(MessageHandler):
    def __init__(self, message, *, wait_for=None, **timeouts):
        super().__init__(message, **timeouts)
        self.wait_for = wait_for

    def run(self):
        print("runs", os.getpid(), flush=True)
        self.work()
        print("finished", os.getpid(), flush=True)

    def work(self):
        deadline = time.monotonic() + 60
        while self.wait_for and not os.path.exists(self.wait_for) and time.monotonic() < deadline:
            time.sleep(0.01)

class Meet(Task):
    def work(self):
        open(f"here-{os.getpid()}", "w").close()
        while len([name for name in os.listdir() if name.startswith("here-")]) < 2:
            time.sleep(0.01)

class Deaf(Task):
    def work(self):
        while True:
            try:
                print("hears nothing", flush=True)
                time.sleep(60)
            except BaseException:
                pass

class Limited(Task):
    def __init__(self, message, **timeouts):
        super().__init__(message, **{**timeouts, "hard_timeout": 1})

    def work(self):
        try:
            time.sleep(60)
        finally:
            open("limited", "w").close()

class Die(Task):
    def work(self):
        os.kill(os.getpid(), 9)

slotted = Worker(TaskManager(os.environ["QUEUE_URL"]), wait_time=1)

@slotted.task("Gather")
def gather(number):
    open(f"here-{os.getpid()}", "w").close()
    while len([name for name in os.listdir() if name.startswith("here-")]) < number:
        time.sleep(0.01)
    print("gathered", os.getpid(), flush=True)

worker = Worker(
    TaskManager(os.environ["QUEUE_URL"]),
    {"Task": Task, "Limited": Limited, "Meet": Meet, "Deaf": Deaf, "Die": Die},
    sqs_timeout=int(os.environ.get("SQS_TIMEOUT", "600")), alarm_timeout=1, hard_timeout=600,
    wait_time=int(os.environ.get("WAIT_TIME", "1")),
    shutdown_grace=float(os.environ.get("GRACE", "600")),
)
not_a_worker = 5

class Spawned(ProcessMessageHandler):  # no slot, but a process of its own
    def __init__(self, message, **timeouts):
        super().__init__(message, start_method="spawn", term_grace=0.1, **timeouts)

    def run(self):
        time.sleep(3600)

alone = Worker(
    TaskManager(os.environ["QUEUE_URL"]), {"Spawned": Spawned}, wait_time=1,
    shutdown_grace=float(os.environ.get("GRACE", "600")),
)
slots_stop = Worker(
    TaskManager(os.environ["QUEUE_URL"]), wait_time=1, shutdown_grace=float(os.environ.get("GRACE", "600"))
)

@slots_stop.task("Sleep", term_grace=0.1)
def sleep():
    time.sleep(3600)

@worker.task("Isolated")
def isolated():
    import ctypes, subprocess
    daemon = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    print("daemon", daemon.pid, flush=True)
    print("runs", os.getpid(), flush=True)
    ctypes.PyDLL(None).sleep(3600)  # C code that holds the interpreter
"""


class WorkerTestCase(ServerTestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        Path(self.folder, "tasks.py").write_text(TASKS)
        self.url = self.create_queue(visibility=LONG)
        self.go = Path(self.folder, "go")

    def submit(self, task="Task", **kwargs):
        self.sqs.send_message(QueueUrl=self.url, MessageBody=json.dumps({"task": task, "kwargs": kwargs}))

    def worker(self, *arguments, name="tasks:worker", **options):
        return Command(self, "worker", name, *arguments, cwd=self.folder, QUEUE_URL=self.url, **options)

    def pids(self, worker, word="runs"):
        return [int(line.split()[1]) for line in worker.lines() if line.startswith(f"{word} ")]

    def busy_worker(self, *arguments, **settings):
        """A worker with one task, which waits for `self.go`."""
        self.submit(wait_for=str(self.go))
        worker = self.worker(*arguments, **settings)
        self.wait_for_runs(worker)
        return worker

    def wait_for_runs(self, worker, number=1):
        return wait_until(lambda: len(self.pids(worker)) >= number and self.pids(worker), f"{number} tasks run")

    def worker_processes(self, worker):
        lines = [line.rpartition(" ")[2] for line in worker.lines() if " started as pid " in line]
        return [int(pid) for pid in lines]

    def assert_given_back(self):
        """The message is visible, long before its visibility timeout ends."""
        wait_until(lambda: self.counts(self.url) == (1, 0, 0), "the message is visible")


class TestWork(WorkerTestCase):
    def test_burst_runs_what_is_there_and_ends_with_0(self):
        for _ in range(3):
            self.submit()
        worker = self.worker("--burst", "--processes", 2)
        self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS), worker.lines())
        self.assertEqual(3, len(self.pids(worker, "finished")))
        self.assertEqual((0, 0, 0), self.counts(self.url))

    def test_nothing_is_left_open_at_its_end(self):
        self.submit()
        for name in ("tasks:worker", "tasks:slotted"):
            worker = self.worker("--burst", name=name, PYTHONDEVMODE="1", PYTHONWARNINGS="error::ResourceWarning")
            self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS), worker.lines())
            self.assertNotIn("ResourceWarning", "\n".join(worker.lines()))

    def test_two_processes_share_a_queue_and_run_at_the_same_time(self):
        self.submit("Meet")
        self.submit("Meet")
        worker = self.worker("--processes", 2)
        wait_until(lambda: len(self.pids(worker, "finished")) == 2, "both have met")
        self.assertEqual(2, len(set(self.pids(worker))))
        self.assertEqual(0, worker.stop())
        self.assertEqual((0, 0, 0), self.counts(self.url))

    def test_slots_run_as_many_at_once_in_one_interpreter(self):
        for _ in range(3):
            self.submit("Gather", number=3)
        worker = self.worker("--slots", 3, "--burst", name="tasks:slotted")
        self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS), worker.lines())
        self.assertEqual(3, len(set(self.pids(worker, "gathered"))), worker.lines())
        self.assertEqual(1, len(self.worker_processes(worker)))
        self.assertEqual((0, 0, 0), self.counts(self.url))

    def test_each_line_that_is_printed_leaves_as_it_comes_and_in_one_piece(self):
        code = "from sqstaskmaster._cli import worker_process as w; w.print_whole_lines(); print('a', 'b'); print('c')"
        for unbuffered in ("", "1"):
            with self.subTest(PYTHONUNBUFFERED=unbuffered):
                # Each write is a packet of its own.
                reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with reading, writing:
                    subprocess.run(
                        [sys.executable, "-c", f"{code}; import os; os._exit(0)"],
                        stdout=writing, check=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
                    )  # fmt: skip
                    self.assertEqual([b"a b\n", b"c\n"], [reading.recv(99), reading.recv(99)])

    def test_as_many_slots_as_there_are_processors(self):
        self.submit("Gather", number=1)
        worker = self.worker("--slots", "auto", "--burst", name="tasks:slotted")
        self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS), worker.lines())

    def test_tasks_in_the_worker_s_own_process_have_no_slots(self):
        worker = self.worker("--slots", 2, "--burst")
        self.assertEqual(2, worker.process.wait(DEADLINE_SECONDS), worker.lines())
        self.assertIn("cannot run in a slot", "\n".join(worker.lines()))

    def test_logs_are_one_json_object_a_line_with_what_became_of_each_task(self):
        self.submit()
        worker = self.worker("--burst", "--log-json", "--processes", 2)
        self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS), worker.lines())
        records = [json.loads(line) for line in worker.lines() if not line.startswith(("runs", "finished"))]
        finished = [record for record in records if record.get("action") == "finished"]
        self.assertEqual([("Task", "done", 1)], [(r["task"], r["outcome"], r["receive_count"]) for r in finished])
        for field in ("message_id", "queued", "elapsed", "time", "level"):
            self.assertIn(field, finished[0])

    def test_below_the_log_level_nothing_is_written(self):
        self.submit()
        worker = self.worker("--burst", "--log-level", "warning")
        self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS))
        self.assertEqual(["runs", "finished"], [line.split()[0] for line in worker.lines()])

    def test_the_alive_file_is_there_while_the_first_long_poll_still_waits(self):
        path = Path(self.folder, "alive")
        worker = self.worker("--processes", 2, "--alive-file", path, WAIT_TIME="20")
        began = awake_seconds()
        wait_until(path.exists, "the alive file is there")
        self.assertLess(awake_seconds() - began, 20)
        # Once would be to wait for the polls.
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("SIGTERM")
        worker.stop()

    def test_a_server_that_does_not_answer_is_waited_for(self):
        endpoint = f"http://127.0.0.1:{free_port()}"
        worker = self.worker(AWS_ENDPOINT_URL=endpoint, AWS_MAX_ATTEMPTS="1")
        worker.wait_for("Polling fails, trying again")
        self.assertIsNone(worker.process.poll())
        self.assertEqual(0, worker.stop())


class TestShutdown(WorkerTestCase):
    def test_idle_workers_end_with_0_and_leave_nothing_behind(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number.name):
                worker = self.worker("--processes", 2)
                pids = wait_until(
                    lambda: len(self.worker_processes(worker)) == 2 and self.worker_processes(worker), "two"
                )
                self.assertEqual(0, worker.stop(number), worker.lines())
                self.assertEqual([False, False], list(map(alive, pids)))
                said = "\n".join(worker.lines())
                for other in {signal.SIGTERM, signal.SIGINT} - {number}:
                    self.assertNotIn(f"{other.name}:", said)

    def test_ctrl_c_on_an_idle_worker_says_that_it_waits_for_its_poll_and_that_a_second_one_stops_it_at_once(self):
        worker = self.worker(WAIT_TIME="20")
        worker.wait_for("started as pid")
        wait_until(lambda: self.is_polled(worker), "it polls")
        worker.process.send_signal(signal.SIGINT)
        line = worker.wait_for("waiting for the poll under way (up to 20 s)")
        self.assertIn("SIGINT", line)
        self.assertIn("a second signal stops it at once", line)
        self.assertEqual(0, worker.stop(signal.SIGINT), worker.lines())
        said = "\n".join(worker.lines())
        self.assertRegex(said, r"Worker ready, sqstaskmaster \S+: serves \S+; tasks: \w")
        self.assertRegex(
            said, r"poll under way is abandoned, and a message that it still brings stays hidden for \d+ s"
        )

    def is_polled(self, worker):
        """Whether the worker process has taken its signals, which it does just before its first poll."""
        [pid] = self.worker_processes(worker)
        with open(f"/proc/{pid}/status") as status:
            caught = int(next(line for line in status if line.startswith("SigCgt")).split()[1], 16)
        port = f":{int(os.environ['AWS_ENDPOINT_URL'].rpartition(':')[2]):04X}"
        with open(f"/proc/{pid}/net/tcp") as sockets:  # those of all processes
            fields = [line.split() for line in sockets]
        connected = {f"socket:[{field[9]}]" for field in fields if field[2].endswith(port) and field[3] == "01"}
        own = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed by now
                own.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        return caught >> (signal.SIGINT - 1) & 1 and not connected.isdisjoint(own)

    def test_a_running_task_may_finish(self):
        worker = self.busy_worker()
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("taking no more work")
        self.go.touch()
        self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS), worker.lines())
        self.assertEqual(1, len(self.pids(worker, "finished")))
        self.assertEqual((0, 0, 0), self.counts(self.url))

    def test_a_task_that_needs_longer_is_given_back_at_once(self):
        worker = self.busy_worker(GRACE="0.1")
        self.assertEqual(0, worker.stop(), worker.lines())
        self.assertEqual([], self.pids(worker, "finished"))
        self.assert_given_back()

    def test_the_second_signal_means_now(self):
        worker = self.busy_worker()
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("taking no more work")
        self.assertEqual(0, worker.stop(signal.SIGINT), worker.lines())
        self.assertEqual([], self.pids(worker, "finished"))
        self.assert_given_back()

    def test_ctrl_c_in_a_terminal_drains_and_is_not_taken_for_two(self):
        worker = self.busy_worker(before=["setsid"])
        # What a terminal does: the signal goes to every process of the group.
        os.killpg(worker.process.pid, signal.SIGINT)
        worker.wait_for("taking no more work")
        self.go.touch()
        self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS), worker.lines())
        self.assertEqual(1, len(self.pids(worker, "finished")))

    def test_started_in_the_background_of_a_script_where_sigint_is_ignored_it_stops_on_sigint_all_the_same(self):
        # What is told to stop a service by SIGINT means it; that a shell had it ignored was not about this service.
        worker = self.worker(before=["sh", "-c", 'trap "" INT QUIT; exec "$@" <&-', "sh"])
        wait_until(lambda: self.worker_processes(worker), "it has started")
        self.assertEqual(0, worker.stop(signal.SIGINT), worker.lines())

    def test_as_process_1_of_a_container(self):
        unshare = ["unshare", "--pid", "--fork", "--kill-child"]
        if subprocess.run([*unshare, "true"], capture_output=True).returncode:
            self.skipTest("no permission to make a PID namespace here")
        worker = self.busy_worker(before=unshare, GRACE="0.1")
        [supervisor] = children_of(worker.process.pid)
        os.kill(supervisor, signal.SIGTERM)
        self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS), worker.lines())
        self.assert_given_back()

    def test_below_a_shell_that_is_process_1_a_warning_says_that_no_signal_arrives(self):
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if subprocess.run([*unshare, "true"], capture_output=True).returncode:
            self.skipTest("no permission to make a PID namespace here")
        worker = self.worker("--burst", before=[*unshare, "sh", "-c", '"$@"; exit', "sh"])
        worker.wait_for("Process 1 of this container is a shell (sh)")
        worker.process.wait(DEADLINE_SECONDS)


class TestDeath(WorkerTestCase):
    def test_a_killed_process_is_replaced_and_its_task_run_again(self):
        self.submit(wait_for=str(self.go))
        worker = self.worker(SQS_TIMEOUT="3")
        pid = self.wait_for_runs(worker)[0]
        os.kill(pid, signal.SIGKILL)
        again = self.wait_for_runs(worker, 2)[1]
        self.assertNotEqual(pid, again)
        worker.wait_for("SIGKILL")
        self.go.touch()
        wait_until(lambda: self.pids(worker, "finished") == [again], "it finishes")
        self.assertEqual(0, worker.stop(), worker.lines())
        self.assertEqual((0, 0, 0), self.counts(self.url))

    def test_a_task_that_kills_its_worker_does_not_end_the_others(self):
        self.submit("Die")
        worker = self.worker("--processes", 2)
        worker.wait_for("SIGKILL")
        self.submit()
        wait_until(lambda: self.pids(worker, "finished"), "the next task runs")
        self.assertEqual(0, worker.stop(), worker.lines())

    def test_when_the_supervisor_is_killed_its_tasks_are_stopped_and_given_back(self):
        worker = self.busy_worker("--processes", 2)
        pids = wait_until(lambda: len(self.worker_processes(worker)) == 2 and self.worker_processes(worker), "both")
        worker.stop(signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), "both are gone", 15)
        self.assertEqual([], self.pids(worker, "finished"))
        self.assert_given_back()

    def test_when_the_supervisor_is_killed_nothing_is_left_of_a_task_in_a_process_of_its_own(self):
        self.submit("Isolated")
        worker = self.worker()
        pids = self.wait_for_runs(worker) + self.pids(worker, "daemon") + self.worker_processes(worker)
        worker.stop(signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), "all are gone", 15)

    def test_when_a_process_is_killed_nothing_is_left_of_its_task(self):
        self.submit("Isolated")
        worker = self.worker()
        pids = self.wait_for_runs(worker) + self.pids(worker, "daemon")
        os.kill(self.worker_processes(worker)[0], signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), "all are gone", 15)
        wait_until(lambda: len(self.worker_processes(worker)) == 2, "another process is started")

    def test_when_the_supervisor_is_killed_a_task_that_swallows_everything_ends_too(self):
        self.submit("Deaf")
        worker = self.worker()
        [pid] = self.wait_for_runs(worker)
        worker.wait_for("hears nothing")
        worker.stop(signal.SIGKILL)
        wait_until(lambda: not alive(pid), "it is gone", 15)
        self.assertNotIn("interrupted", "\n".join(worker.lines()))


class TestAttributes(WorkerTestCase):
    def test_a_worker_asks_for_all_message_attributes(self):
        Path(self.folder, "tasks.py").write_text(
            TASKS.replace(
                "    def work(self):", "    def work(self):\n        print('has', self._message.message_attributes)", 1
            )
        )
        attributes = {"trace": {"DataType": "String", "StringValue": "abc"}}
        body = json.dumps({"task": "Task", "kwargs": {}})
        self.sqs.send_message(QueueUrl=self.url, MessageBody=body, MessageAttributes=attributes)
        worker = self.worker("--burst")
        self.assertEqual(0, worker.process.wait(DEADLINE_SECONDS), worker.lines())
        self.assertIn("'abc'", worker.wait_for("has {"))


class TestStalledLog(WorkerTestCase):
    """Whoever reads the log has stopped reading, and the pipe is full: nothing that stops may wait for it."""

    # The name of the worker, and a task: in the worker's own process, in one of its own, in slots.
    DRIVERS = (("worker", "Task"), ("alone", "Spawned"), ("slots_stop", "Sleep"))

    def start(self, *arguments, worker="worker", before=None):
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"\0" * 4096)
        os.set_blocking(writing, True)
        process = subprocess.Popen(
            [*(before or [*command(), "worker", f"tasks:{worker}"]), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writing,
            cwd=self.folder,
            env=online(QUEUE_URL=self.url, GRACE="0.1"),
        )
        os.close(writing)
        self.addCleanup(stop, process)
        return process

    def wait_for_task(self):
        wait_until(lambda: self.counts(self.url) == (0, 1, 0), "the task runs")

    def test_sigterm_stops_the_worker_all_the_same(self):
        for worker, task in self.DRIVERS:
            with self.subTest(worker):
                self.url = self.create_queue(visibility=LONG)
                self.submit(task, **({"wait_for": str(self.go)} if task == "Task" else {}))
                process = self.start("--log-level", "DEBUG", worker=worker)
                self.wait_for_task()
                process.send_signal(signal.SIGTERM)
                self.assertEqual(0, process.wait(DEADLINE_SECONDS))
                self.assert_given_back()

    def test_a_program_that_runs_its_worker_itself_ends_too(self):
        for worker, task in self.DRIVERS:
            with self.subTest(worker):
                self.url = self.create_queue(visibility=LONG)
                self.submit(task, **({"wait_for": str(self.go)} if task == "Task" else {}))
                process = self.start(before=self.program(worker))
                self.wait_for_task()
                process.send_signal(signal.SIGTERM)
                self.assertEqual(0, process.wait(DEADLINE_SECONDS))
                self.assert_given_back()

    def program(self, worker):
        """One that runs its worker itself, in the main thread, and writes its log with Python's own handler."""
        program = "import logging, tasks; logging.basicConfig(level='CRITICAL'); "  # botocore's lines are the user's
        program += f"logging.getLogger('sqstaskmaster').setLevel('DEBUG'); tasks.{worker}.run()"
        return [sys.executable, "-c", program]

    def test_tasks_in_the_workers_own_process_go_on_and_their_limit_holds(self):
        """One line after the other finds no reader: of a task that is done, and of one that fails."""
        for task in ("Task", "Limited", "Task"):
            self.submit(task)
        process = self.start(before=self.program("worker"))
        wait_until(lambda: Path(self.folder, "limited").exists(), "the limited task has been stopped")
        wait_until(lambda: self.counts(self.url) == (0, 1, 0), "the others are done, and deleted")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(0, process.wait(DEADLINE_SECONDS))

    def test_when_the_supervisor_is_killed_its_processes_end_all_the_same(self):
        for worker, task in (*self.DRIVERS, ("worker", "Deaf")):
            with self.subTest(task):
                self.url = self.create_queue(visibility=LONG)
                self.submit(task)
                process = self.start(worker=worker)
                pids = wait_until(lambda: children_of(process.pid), "there is a process")
                wait_until(lambda: self.counts(self.url)[0] == 0, "the task has been received")
                process.kill()
                wait_until(lambda: not any(map(alive, pids)), "it is gone", 15)


class TestDoctor(WorkerTestCase):
    def test_the_doctor_finds_the_worker_in_the_current_folder_however_the_command_is_installed(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        # As pip installs a command: a script elsewhere, whose folder Python puts in front, not the current one.
        script = Path(folder.name, "sqstaskmaster-command")
        script.write_text("import sys\nfrom sqstaskmaster._cli.main import main\nsys.exit(main())\n")
        looked = subprocess.run(
            [sys.executable, script, "doctor", self.url, "--worker", "tasks:worker"],
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=DEADLINE_SECONDS,
            env=online(QUEUE_URL=self.url, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        )
        self.assertEqual(8, looked.returncode, looked.stderr)
        self.assertIn("the worker claims 600 s at a time", looked.stdout)


class TestErrors(WorkerTestCase):
    def assert_refused(self, name, code, *texts, more=(), most=1, **options):
        worker = self.worker("--processes", 2, "--log-level", "ERROR", *more, name=name, **options)
        self.assertEqual(code, worker.process.wait(DEADLINE_SECONDS), worker.lines())
        said = "\n".join(worker.lines())
        for text in texts:
            self.assertIn(text, said)
        if not more:
            self.assertEqual(1, len(set(worker.lines())), said)
            self.assertLessEqual(len(worker.lines()), most, said)

    def test_an_initializer_that_fails_in_every_slot(self):
        Path(self.folder, "unready.py").write_text(
            "from sqstaskmaster import TaskManager, Worker\n"
            "def initialize():\n    raise OSError('no such GPU')\n"
            f"worker = Worker(TaskManager({self.url!r}), initializer=initialize, slots=2)\n"
            "@worker.task('NoOp')\ndef no_op():\n    pass\n"
        )
        self.submit("NoOp")
        texts = "raise OSError('no such GPU')", "sqstaskmaster: The worker's initializer has failed 3 times in a row"
        self.assert_refused("unready:worker", 11, *texts, more=("--log-level", "ERROR"))
        self.assertEqual((1, 0), self.counts(self.url)[:2])

    def test_a_module_that_is_not_there(self):
        self.assert_refused("no_such_module:worker", 3, "There is no module 'no_such_module'", "run the command in")
        self.assert_refused("no_such.module:worker", 3, "There is no module 'no_such.module'")

    def test_a_folder_that_has_been_removed(self):
        before = ["sh", "-c", 'mkdir gone && cd gone && rmdir "$PWD" && exec "$@"', "sh"]
        self.assert_refused("tasks:worker", 3, "The current folder has been removed", before=before)

    def test_a_name_that_is_not_there(self):
        self.assert_refused("tasks:workers", 3, "Module 'tasks' has no 'workers'")

    def test_something_else_than_a_worker(self):
        self.assert_refused("tasks:not_a_worker", 3, "tasks:not_a_worker is not a Worker but of type int")

    def test_a_module_that_raises_says_where(self):
        Path(self.folder, "broken.py").write_text("\n\nraise ValueError('no such model')\n")
        self.assert_refused("broken:worker", 3, "ValueError: no such model", "broken.py, line 3")

    def test_a_module_that_raises_deep_in_a_library_names_the_users_own_line(self):
        Path(self.folder, "deep.py").write_text("import json\n\nmodel = json.loads('{')\n")
        self.assert_refused("deep:worker", 3, "JSONDecodeError", "deep.py, line 3")
        Path(self.folder, "ours.py").write_text("from sqstaskmaster import TaskManager\n\nm = TaskManager('')\n")
        self.assert_refused("ours:worker", 3, "ValueError", "ours.py, line 3")
        Path(self.folder, "wrong.py").write_text("worker =\n")
        self.assert_refused("wrong:worker", 3, "SyntaxError", "wrong.py, line 1")

    def test_a_module_that_runs_its_worker_while_it_is_imported_is_refused_with_the_remedy(self):
        Path(self.folder, "eager.py").write_text("from tasks import worker\nworker.run()\n")
        self.assert_refused("eager:worker", 3, "'eager' runs its worker while it is imported", '__name__ == "__main__"')
        self.assertEqual([], self.receive(self.url))

    def test_a_module_that_lacks_one_of_its_own_says_which(self):
        Path(self.folder, "lacking.py").write_text("import no_such_library\n")
        self.assert_refused("lacking:worker", 3, "'lacking' cannot be imported", "No module named 'no_such_library'")

    def test_debug_shows_the_traceback(self):
        Path(self.folder, "broken.py").write_text("raise ValueError('no such model')\n")
        self.assert_refused("broken:worker", 3, "Traceback", "no such model", more=["--debug"])

    def test_a_queue_that_is_not_there(self):
        self.url += "-not"
        self.assert_refused(
            "tasks:worker", 4, f"The queue {self.url} cannot be polled", "check the queue's URL", most=2
        )

    def test_no_credentials(self):
        environ = offline(
            QUEUE_URL=self.url,
            AWS_ENDPOINT_URL=os.environ["AWS_ENDPOINT_URL"],
            AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
        )
        finished = run("worker", "tasks:worker", "--log-level", "ERROR", environ=environ, cwd=self.folder)
        self.assertEqual(4, finished.returncode, finished.stderr)
        self.assertRegex(finished.stderr, "cannot be polled: Unable to locate credentials: set AWS_ACCESS_KEY_ID")
        self.assertEqual(1, len(finished.stderr.splitlines()), finished.stderr)

    def test_a_command_line_that_makes_no_sense_starts_nothing(self):
        for arguments, text in (
            (["tasks.py:worker"], "tasks:worker for the Worker"),
            (["tasks"], "is not MODULE:WORKER"),
            (["tasks:worker", "--processes", "0"], "'0' is not a number of processes from 1"),
            (["tasks:worker", "--log-level", "LOUD"], "LOUD"),
            (["tasks:worker", "--alive-file", "no/such/folder/alive"], "--alive-file no/such/folder/alive"),
        ):
            with self.subTest(arguments):
                finished = run("worker", *arguments, environ=offline(**ENVIRONMENT), cwd=self.folder)
                self.assertEqual(2, finished.returncode, finished.stderr)
                self.assertIn(text, finished.stderr)
                self.assertNotIn("started", finished.stderr)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return list(map(int, children.read().split()))


if __name__ == "__main__":
    unittest.main()
