"""The torture table: what tasks do to a worker, with MessageHandler and with ProcessMessageHandler.

    python -m benchmarks.torture                                everything, two minutes on two cores
    python -m benchmarks.torture --handler process --kind BLAS  one row; --kind is any part of a name, and repeatable

Each row is a worker process of its own with its own queue, on a real SQS server over HTTP. In seconds: visibility
timeout 4, heartbeat 1, limit 3 for the kinds that hang; those that are not stopped are watched until 18, then their
worker is SIGKILLed. The columns:

    late      seconds past the limit until the task's block was left, with everything it started gone
    next      whether the same worker then ran the next task of the queue
    message   "kept": it came back to the queue; "done": deleted, as finished; "lost": neither
    lapsed    the claim: another worker could have received the message while the task ran. For the long kinds a second
              worker waits for just that; for the others the number of visible messages is watched.
    left      processes of the task that still existed when its block had been left, or its worker had died
    starts    how often the task was started
    hurt      with slots, seven healthy tasks run beside it: how many of them were started twice, late, or not done
    error     the error passed to `notify`, and the function in which, by its stack, the task was

Exits with 0 if ProcessMessageHandler reached every goal. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config

from benchmarks import torture_kinds as kinds
from benchmarks import torture_worker as worker
from benchmarks.servers import END_SECONDS, fast_server
from sqstaskmaster import TaskManager

LIMIT_SECONDS = 3
LONG_LIMIT_SECONDS = 30
WATCHED_SECONDS = 18

# The field's comparison allows a task to be a second late.
ALLOWED_LATE_SECONDS = 1.0
# The process handler's promise: at most this late after the limit, or after term_grace if the task ignored SIGTERM.
PROMISED_LATE_SECONDS = 0.1

# Between two looks at a row's events and queue.
LOOK_SECONDS = 0.1
# Added to every wait; a busy machine needs it.
SLACK_SECONDS = 5

HANDLERS = ("plain", "process", "slots", "warm")
# So that the workers use the same package as this script.
PYTHONPATH = os.pathsep.join(sys.path)

# Units of load: of a task that keeps a processor busy, of one that does not, and how many fit on a processor.
HEAVY, LIGHT, PER_PROCESSOR = 4, 1, 5


@dataclasses.dataclass
class Row:
    handler: str
    kind: str
    group: str
    late: float | None = None
    next_ran: bool | None = None
    message: str = "lost"
    lapsed: bool = False
    left: int = 0
    starts: int = 0
    hurt: int | None = None
    error: str = ""

    def cells(self):
        late = "" if self.group in ("crash", "long") else "never" if self.late is None else f"{self.late:.3f}"
        next_ran = {True: "yes", False: "no", None: ""}[self.next_ran]
        lapsed = "yes" if self.lapsed else "no"
        return (
            self.handler,
            self.kind,
            late,
            next_ran,
            self.message,
            lapsed,
            str(self.left),
            str(self.starts),
            "" if self.hurt is None else str(self.hurt),
            self.error,
        )


class Slots:
    """Rows run side by side; heavy ones take more of the capacity."""

    def __init__(self, total):
        self._free = self._total = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, wanted):
        wanted = min(wanted, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


class Case:
    """A queue, one or two workers on it, and the events they record."""

    def __init__(self, sqs, folder, handler, options):
        self._sqs = sqs
        self._handler = handler
        self._options = {} if handler == "plain" else options
        name = uuid.uuid4().hex
        self._events = os.path.join(folder, name)
        self.url = sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "30"})["QueueUrl"]
        self._manager = TaskManager(self.url)
        self.workers = []
        self.lapsed = False
        self._expected_visible = 0

    def start_worker(self):
        with open(f"{self._events}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", worker.__name__, self._handler, self.url, json.dumps(self._options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, worker.EVENTS: self._events, "PYTHONPATH": PYTHONPATH},
            )
        self.workers.append(process)

    def submit(self, function, limit=LIMIT_SECONDS):
        self._manager.submit(function.__name__, limit=limit)

    def recorded(self, event):
        """The recorded events of that name, in order."""
        try:
            with open(self._events) as lines:
                found = [json.loads(line) for line in lines]
        except FileNotFoundError:
            return []
        return [facts for facts in found if facts["event"] == event]

    def events(self, event, function):
        """The same for one task."""
        return [facts for facts in self.recorded(event) if facts["task"] == function.__name__]

    def at(self, event, function):
        """When the event first happened, or None."""
        return next((facts["at"] for facts in self.events(event, function)), None)

    def visible(self):
        name = "ApproximateNumberOfMessages"
        answer = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])
        return int(answer["Attributes"][name]), int(answer["Attributes"][f"{name}NotVisible"])

    def wait(self, condition, seconds):
        """Wait for the condition. Returns whether it came true in time, while a worker lived."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until or all(process.poll() is not None for process in self.workers):
                return bool(condition())
            time.sleep(LOOK_SECONDS)
        return True

    def watch_claim(self, function, expected_visible):
        """Check once whether the claim on the running task's message has lapsed."""
        visible, _ = self.visible()
        if visible > expected_visible and not self.at("left", function):
            self.lapsed = True

    def comes_back(self, function):
        """Whether we receive the message again."""
        until = time.monotonic() + worker.VISIBILITY_SECONDS + SLACK_SECONDS
        while time.monotonic() < until:
            answer = self._sqs.receive_message(QueueUrl=self.url, WaitTimeSeconds=1, VisibilityTimeout=60)
            for message in answer.get("Messages", []):
                if json.loads(message["Body"])["task"] == function.__name__:
                    return True
        return False

    def wait_for_end(self):
        until = time.monotonic() + 1
        while self.others() and time.monotonic() < until:
            time.sleep(0.01)

    def own(self):
        """The workers' processes, multiprocessing's helpers included."""
        started = {process.pid for process in self.workers}
        return started.union(*(facts["pids"] for facts in self.recorded("workers")))

    def others(self):
        """The processes that the tasks started."""
        own = self.own()
        return [pid for pid in worker.processes(self._events) if pid not in own]

    def error(self, function):
        facts = (self.events("notified", function) or [{"error": "", "inside": ""}])[-1]
        return f"{facts['error']} in {facts['inside']}" if facts["inside"] else facts["error"]

    def kill_workers(self):
        for process in self.workers:
            process.kill()
            process.wait(END_SECONDS)

    def start_neighbours(self):
        """With slots: start healthy tasks in all slots but one."""
        if self._handler in ("slots", "warm"):
            for _ in range(kinds.NEIGHBOURS):
                self.submit(kinds.neighbour, LONG_LIMIT_SECONDS)
            self.wait(lambda: len(self.events("started", kinds.neighbour)) >= kinds.NEIGHBOURS, WATCHED_SECONDS)

    def hurt_neighbours(self):
        """With slots: how many of them did not run once, to their end, on time."""
        if self._handler not in ("slots", "warm"):
            return None
        self.wait(lambda: len(self.events("ended", kinds.neighbour)) >= kinds.NEIGHBOURS, WATCHED_SECONDS)
        started = [facts["at"] for facts in self.events("started", kinds.neighbour)]
        done = [facts["at"] for facts in self.events("ended", kinds.neighbour) if facts["outcome"] == "done"]
        expected = kinds.NEIGHBOURS
        late = sum(
            end - start > kinds.NEIGHBOUR_SECONDS + SLACK_SECONDS for start, end in zip(sorted(started), sorted(done))
        )
        return abs(len(started) - expected) + max(0, expected - len(done)) + late

    def close(self):
        self.kill_workers()
        for pid in self.others():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._sqs.delete_queue(QueueUrl=self.url)


def run_hung(case, row, before, function):
    case.start_worker()
    case.start_neighbours()
    if before:
        case.submit(before)
        case.wait(lambda: case.events("ended", before), WATCHED_SECONDS)
    case.submit(function)
    watch(case, row, function)


def run_crash(case, row, function):
    case.start_worker()
    case.start_neighbours()
    case.submit(function)
    watch(case, row, function)


def watch(case, row, function):
    """Watch a task that will not finish, from its start to the next task and the message's return."""
    case.wait(lambda: case.events("started", function), WATCHED_SECONDS)
    case.submit(kinds.nothing)

    def left():
        case.watch_claim(function, expected_visible=1)
        return case.events("left", function)

    case.wait(left, WATCHED_SECONDS)
    row.next_ran = case.wait(lambda: case.events("started", kinds.nothing), SLACK_SECONDS if left() else 0)
    case.wait(lambda: case.events("ended", kinds.nothing), SLACK_SECONDS if row.next_ran else 0)
    row.hurt = case.hurt_neighbours()
    case.kill_workers()
    conclude(case, row, function)
    row.message = "kept" if case.comes_back(function) else "lost"


def conclude(case, row, function):
    # "left" is missing if another alarm came before it was recorded.
    entered, left = case.at("entered", function), case.at("left", function) or case.at("ended", function)
    row.late = left - entered - LIMIT_SECONDS if entered and left else None
    row.starts = len(case.events("started", function))
    row.lapsed = case.lapsed
    # The processes of a worker with slots end just after it.
    case.wait_for_end()
    at_end = [pid for facts in case.events("ended", function) for pid in facts["others"]]
    row.left = len({*at_end, *case.others()} - case.own())
    row.error = case.error(function)


def run_long(case, row, function):
    case.start_worker()
    case.start_worker()
    case.start_neighbours()
    case.submit(function, LONG_LIMIT_SECONDS)
    case.wait(lambda: case.events("ended", function), WATCHED_SECONDS)

    def over():
        return len(case.events("started", function)) == len(case.events("left", function)) and case.visible() == (0, 0)

    row.message = "done" if case.wait(over, WATCHED_SECONDS) else "lost"
    row.hurt = case.hurt_neighbours()
    case.kill_workers()
    conclude(case, row, function)
    row.lapsed = row.starts > 1


def run_killed(case, row, function):
    """SIGKILL to the worker's main process in the middle of a task."""
    case.start_worker()
    case.submit(function, LONG_LIMIT_SECONDS)
    case.wait(lambda: case.events("started", function), WATCHED_SECONDS)
    time.sleep(1)  # into the middle
    killed_at = time.monotonic()
    case.kill_workers()
    while case.others() and time.monotonic() < killed_at + worker.VISIBILITY_SECONDS:
        time.sleep(0.001)
    row.late = None if case.others() else time.monotonic() - killed_at
    row.message = "kept" if case.comes_back(function) else "lost"
    # In addition to its redelivered copy.
    row.left = len(case.others())
    row.starts = len(case.events("started", function))


def run(row, functions, slots, *case_arguments):
    heavy = any(function in kinds.HEAVY for function in functions)
    with slots.held(HEAVY if heavy else LIGHT):
        case = Case(*case_arguments)
        try:
            {"hung": run_hung, "crash": run_crash, "long": run_long, "killed": run_killed}[row.group](
                case, row, *functions
            )
        finally:
            case.close()
    print(".", end="", file=sys.stderr, flush=True)
    return row


# -- the table ---------------------------------------------------------------------------------------------------------

HEADINGS = ("handler", "kind", "late", "next", "message", "lapsed", "left", "starts", "hurt", "error")


def print_table(rows):
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    lines.insert(1, tuple("-" * width for width in widths))
    for line in lines:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def summary(rows, term_grace):
    """[(the goal in words, how many reached it, of how many)]"""

    def group(name):
        return [row for row in rows if row.group == name]

    def count(name, condition):
        chosen = rows if name is None else group(name)
        return sum(bool(condition(row)) for row in chosen), len(chosen)

    def slotted(condition):
        found = [row for row in rows if row.hurt is not None]
        return sum(condition(row) for row in found), len(found)

    def as_promised(row):
        # The clock of a row starts just after that of the handler.
        return row.late is not None and any(abs(row.late - due) <= PROMISED_LATE_SECONDS for due in (0, term_grace))

    goals = [
        ("hung kinds stopped on time (1 s)", *count("hung", lambda row: (row.late or 99) <= ALLOWED_LATE_SECONDS)),
        ("hung kinds stopped within 0.1 s of the limit, or of term_grace", *count("hung", as_promised)),
        ("hung kinds after which the next task ran", *count("hung", lambda row: row.next_ran)),
        ("crashes survived: the same worker ran the next task", *count("crash", lambda row: row.next_ran)),
        ("long kinds that ran exactly once", *count("long", lambda row: row.starts == 1 and row.message == "done")),
        ("killed workers whose task was gone with them", *count("killed", lambda row: row.late is not None)),
        ("messages not lost", *count(None, lambda row: row.message != "lost")),
        ("claims that never lapsed while the task ran", *count(None, lambda row: not row.lapsed)),
        ("tasks that left no process behind", *count(None, lambda row: not row.left)),
        ("rows in which no neighbour was hurt", *slotted(lambda row: not row.hurt)),
    ]
    return [goal for goal in goals if goal[2]]


def chosen(arguments):
    """[(row, its functions)] in the order of the table."""
    groups = {"hung": kinds.HUNG, "crash": kinds.CRASHES, "long": kinds.LONG, "killed": kinds.WORKER_KILLED}
    found = []
    for handler in arguments.handler or HANDLERS:
        for group, listed in groups.items():
            for kind, functions in listed.items():
                if not arguments.kind or any(part.lower() in kind.lower() for part in arguments.kind):
                    functions = functions if isinstance(functions, tuple) else (functions,)
                    found.append((Row(handler, kind, group), functions))
    return found


def without_missing(found):
    if importlib.util.find_spec("numpy") is None and any(kinds.blas in functions for _, functions in found):
        print("Left out: one large BLAS product, because NumPy is not installed (pip install numpy)")
        return [(row, functions) for row, functions in found if kinds.blas not in functions]
    return found


def arguments_of(command_line):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--handler", action="append", choices=HANDLERS, help="only this one")
    parser.add_argument("--kind", action="append", metavar="TEXT", help="only kinds with this in their name")
    parser.add_argument("--start-method", choices=("fork", "forkserver", "spawn"), default="fork")
    parser.add_argument("--term-grace", type=float, default=0.5, help="seconds from SIGTERM to SIGKILL (%(default)s)")
    parser.add_argument("--slots", type=int, default=PER_PROCESSOR * (os.cpu_count() or 1), help=argparse.SUPPRESS)
    parser.add_argument("--logs", metavar="FOLDER", help="keep the workers' logs and events there")
    return parser.parse_args(command_line)


def main(command_line=None):
    arguments = arguments_of(command_line)
    found = without_missing(chosen(arguments))
    if not found:
        sys.exit("No kind has that in its name: see torture_kinds.py")
    options = {"term_grace": arguments.term_grace, "start_method": arguments.start_method}
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = arguments.logs or stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(fast_server())
        sqs = boto3.client("sqs", config=Config(max_pool_connections=100))
        slots = Slots(arguments.slots)
        with ThreadPoolExecutor(arguments.slots) as pool:
            running = [
                pool.submit(run, row, functions, slots, sqs, folder, row.handler, options) for row, functions in found
            ]
            rows = [future.result() for future in running]
    print(file=sys.stderr)
    print_table(rows)
    print("\nOut of memory: SIGKILL to itself, which is what the kernel sends.")
    print(f"term_grace {arguments.term_grace}, {arguments.start_method}, {time.monotonic() - began:.0f} s in all\n")
    missed = False
    for handler in arguments.handler or HANDLERS:
        for goal, reached, of in summary([row for row in rows if row.handler == handler], arguments.term_grace):
            print(f"{handler}: {reached} of {of} {goal}")
            missed = missed or handler != "plain" and reached < of
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
