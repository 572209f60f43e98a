"""The supervisor with processes that are no workers: what it does when they die, hang, or are told to stop."""

import os
import re
import signal
import tempfile
import time
import unittest
from pathlib import Path

from sqstaskmaster._service.supervisor import Backoff
from tests.support import DEADLINE_SECONDS, Script, stop, wait_until
from tests.support.commands import alive

# The processes say what they do in a file each, named by their id. What they do is the last argument of the script.
SUPERVISE = """
import logging, sys
from pathlib import Path
from sqstaskmaster._service.supervisor import Supervisor

logging.basicConfig(level="INFO")
child, processes, burst, alive = sys.argv[1:]
child = "import os, signal, socket, sys, time; say = socket.socket(fileno=int(sys.argv[1])).send; " + child
# One write for a line: the processes share an output, and Python's own print may take two.
child = "import os; print = lambda *words, flush: os.write(1, (' '.join(map(str, words)) + chr(10)).encode()); " + child
# As workers do, they end with the supervisor, however it ends.
child = "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGKILL); " + child
alive = Path(alive) if alive else None
sys.exit(Supervisor(["-c", child], int(processes), burst=burst == "burst", alive_file=alive).run())
"""

# Without a pause between two starts.
AT_ONCE = SUPERVISE.replace("import logging", "from sqstaskmaster._service import supervisor\nimport logging").replace(
    "child, processes", "supervisor.Backoff.after = lambda *_, **__: 0.0\nchild, processes"
)

WORK = "say(b'l'); say(b'p'); print('works', os.getpid(), flush=True); time.sleep(3600)"


class TestBackoff(unittest.TestCase):
    def test_each_pause_is_twice_the_one_before_up_to_the_longest(self):
        backoff = Backoff(first=0.5, longest=3.0, healthy=60.0)
        self.assertEqual([0.5, 1.0, 2.0, 3.0, 3.0], [backoff.after(lived=1.0) for _ in range(5)])

    def test_a_process_that_lived_long_enough_begins_anew(self):
        backoff = Backoff(first=0.5, longest=3.0, healthy=60.0)
        backoff.after(lived=1.0)
        backoff.after(lived=1.0)
        self.assertEqual([0.5, 1.0], [backoff.after(lived=60.0), backoff.after(lived=59.0)])


class TestSupervisor(unittest.TestCase):
    def supervise(self, child, processes=1, burst="", alive="", source=SUPERVISE):
        script = Script(self, source, child, processes, burst, alive)
        self.addCleanup(self.assert_ends_whole, script)
        return script

    def assert_ends_whole(self, script):
        """Killed, the supervisor leaves none of these processes behind."""
        stop(script.process)
        pids = [int(line.split()[1]) for line in script.lines() if line.startswith("works")]
        wait_until(lambda: not any(map(alive, pids)), "its processes have gone with it")

    def folder(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return folder.name

    def working(self, script, number):
        """The ids of the processes that work, when there have been so many, and the supervisor has said so of each."""

        def found():
            pids = self.pids(script, "works")
            return min(len(pids), "\n".join(script.lines()).count("started as pid")) >= number and pids

        return wait_until(found, f"{number} processes work")

    def pids(self, script, word):
        return [int(line.split()[1]) for line in script.lines() if line.startswith(f"{word} ")]

    def assert_idle(self, script):
        """The supervisor takes next to no processor time, watched for half a second."""
        before, until = cpu_seconds(script.process.pid), time.monotonic() + 0.5
        wait_until(lambda: time.monotonic() > until, "half a second is over")
        self.assertLess(cpu_seconds(script.process.pid) - before, 0.2)

    def wait(self, script):
        return script.process.wait(DEADLINE_SECONDS)

    def test_a_process_that_is_killed_is_replaced(self):
        script = self.supervise(WORK, processes=2)
        first, second = self.working(script, 2)
        os.kill(first, signal.SIGKILL)
        pids = self.working(script, 3)
        self.assertEqual(3, len(set(pids)))
        self.assertTrue(alive(second))
        script.wait_for("SIGKILL")

    def test_a_process_that_ends_on_its_own_is_replaced_whatever_its_code(self):
        script = self.supervise("say(b'lp'); print('works', os.getpid(), flush=True)")
        self.working(script, 2)
        script.wait_for("ended with exit code 0")

    def test_pauses_between_restarts_grow(self):
        script = self.supervise("say(b'lp'); print('works', os.getpid(), flush=True); sys.exit(1)")
        self.working(script, 3)
        wait_until(lambda: len(pauses(script)) >= 3, "three pauses")
        self.assertEqual(["0.5", "1.0", "2.0"], pauses(script)[:3])

    def test_a_stop_signal_is_passed_on_and_everything_is_reaped(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number.name):
                child = f"signal.signal({number:d}, lambda *_: (print('told', flush=True), sys.exit(0))); {WORK}"
                script = self.supervise(child, processes=2)
                pids = self.working(script, 2)
                script.process.send_signal(number)
                self.assertEqual(0, self.wait(script))
                self.assertEqual(2, script.lines().count("told"))
                for pid in pids:
                    self.assertFalse(alive(pid))

    def test_the_second_signal_is_passed_on_too(self):
        child = "count = [0]; signal.signal(15, lambda *_: (print('told', flush=True), count.append(1))); say(b'lp'); "
        child += "print('works', os.getpid(), flush=True)\nwhile len(count) < 3: time.sleep(0.01)"
        script = self.supervise(child)
        self.working(script, 1)
        script.process.send_signal(signal.SIGTERM)
        script.wait_for("told")
        self.assertIsNone(script.process.poll())
        script.process.send_signal(signal.SIGTERM)
        self.assertEqual(0, self.wait(script))
        self.assertEqual(2, script.lines().count("told"))

    def test_nothing_is_started_once_it_was_told_to_stop(self):
        child = "signal.signal(15, signal.SIG_IGN); " + WORK
        script = self.supervise(child, processes=2)
        pids = self.working(script, 2)
        script.process.send_signal(signal.SIGTERM)
        script.wait_for("SIGTERM")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.assertEqual(0, self.wait(script))
        self.assertEqual(2, len(self.working(script, 2)))

    def test_ctrl_c_in_a_terminal_reaches_a_process_only_through_the_supervisor(self):
        script = self.supervise("print('works', os.getpid(), os.getsid(0), flush=True); say(b'lp'); time.sleep(3600)")
        line = script.wait_for("works").split()
        self.assertEqual(line[1], line[2])

    def test_the_other_processes_start_when_the_first_has_loaded_its_module(self):
        child = "print('works', os.getpid(), flush=True)\nwhile not os.path.exists(%r): time.sleep(0.01)\n"
        go = os.path.join(self.folder(), "go")
        script = self.supervise(child % go + "say(b'lp'); time.sleep(3600)", processes=3)
        self.working(script, 1)
        self.assertEqual(1, "\n".join(script.lines()).count("started as pid"))
        Path(go).touch()
        self.working(script, 3)

    def test_what_a_process_says_is_fatal_ends_everything_with_its_code(self):
        script = self.supervise("say(b'#FATAL#'); sys.exit(3)", processes=3)
        self.assertEqual(3, self.wait(script))

    def test_after_a_fatal_end_no_process_is_signalled_none_is_started_and_its_code_is_given(self):
        folder = self.folder()
        first, go, enough = (os.path.join(folder, name) for name in ("first", "go", "enough"))
        child = "signal.signal(15, lambda *_: print('told', flush=True)); say(b'lp')\n"
        child += f"try: os.mkdir({first!r}); code, path = 4, {go!r}\n"
        child += f"except OSError: code, path = 0, {enough!r}\n"
        child += "print('works', os.getpid(), flush=True)\nwhile not os.path.exists(path): time.sleep(0.01)\n"
        child += "if code: say(b'#FATAL#')\nsys.exit(code)"
        script = self.supervise(child, processes=2)
        pids = self.working(script, 2)
        Path(go).touch()
        wait_until(lambda: sum(map(alive, pids)) == 1, "the first has ended")
        self.assertIsNone(script.process.poll())
        Path(enough).touch()
        self.assertEqual(4, self.wait(script))
        self.assertEqual((0, 2), (script.lines().count("told"), "\n".join(script.lines()).count("started as pid")))

    def test_a_host_on_which_no_initializer_returns_ends_the_supervisor_with_a_code_of_its_own(self):
        self.assertEqual(11, self.wait(self.supervise("say(b'lp#FATAL#'); sys.exit(11)", processes=1)))

    def test_where_another_process_has_had_a_ready_slot_it_is_tried_again_a_minute_later(self):
        child = "say(b'lpr'); print('works', os.getpid(), flush=True)\nwhile not os.path.exists(%r): time.sleep(0.01)\n"
        child += "try: os.unlink(%r)\nexcept OSError: time.sleep(3600)\nsay(b'#FATAL#'); sys.exit(11)"
        go = os.path.join(self.folder(), "go")
        script = self.supervise(child % (go, go), processes=2)
        self.working(script, 2)
        Path(go).touch()
        wait_until(lambda: "another starts in 60.0 s" in "\n".join(script.lines()), "it is tried again")

    def test_an_exit_code_alone_is_never_fatal(self):
        for code in (2, 3, 4, 11):
            with self.subTest(code):
                script = self.supervise(f"say(b'lp'); print('works', os.getpid(), flush=True); sys.exit({code})")
                self.working(script, 2)
                script.end()

    def test_bytes_that_a_task_writes_into_the_socket_are_never_fatal(self):
        child = "say(b'lp'); print('works', os.getpid(), flush=True); say(b'#FATAL#' + bytes(range(256))); sys.exit(4)"
        self.working(self.supervise(child), 2)

    def test_a_socket_that_outlives_its_process_costs_no_time_and_no_descriptor(self):
        # What a plain task has forked holds the socket, and goes on when its worker is gone.
        child = "say(b'lp')\nif not os.fork():\n    os.setsid(); print('left', os.getpid(), flush=True)\n"
        child += "    while os.path.exists(%r): time.sleep(0.02)\n    os._exit(0)\n"
        child += "print('works', os.getpid(), flush=True); time.sleep(3600)"
        mark = Path(self.folder(), "mark")
        mark.touch()
        self.addCleanup(mark.unlink, missing_ok=True)
        script = self.supervise(child % str(mark))
        descriptors = []
        for number in (1, 2, 3):
            pid = self.working(script, number)[-1]
            descriptors.append(len(os.listdir(f"/proc/{script.process.pid}/fd")))
            wait_until(lambda: len(self.pids(script, "left")) == number, "it has forked")
            os.kill(pid, signal.SIGKILL)
        self.working(script, 4)
        self.assertEqual(1, len(set(descriptors)), descriptors)
        left = self.pids(script, "left")[:3]
        mark.unlink()  # the other ends are closed now, and nobody may look at them again and again
        wait_until(lambda: not any(map(alive, left)), "what was left has ended")
        self.assert_idle(script)

    def test_what_cannot_be_started_for_now_is_tried_again_and_leaks_nothing(self):
        # As where there are no more descriptors: the second and the third start fail.
        source = SUPERVISE.replace(
            "import logging",
            """
import subprocess
real, starts = subprocess.Popen, []
def popen(*arguments, **options):
    starts.append(1)
    if len(starts) in (2, 3):
        raise OSError(24, "Too many open files")
    return real(*arguments, **options)
subprocess.Popen = popen
import logging""",
            1,
        )
        script = self.supervise(WORK, source=source)
        pid = self.working(script, 1)[0]
        before = len(os.listdir(f"/proc/{script.process.pid}/fd"))
        os.kill(pid, signal.SIGKILL)
        self.working(script, 2)
        self.assertEqual(2, "\n".join(script.lines()).count("cannot be started: [Errno 24] Too many open files"))
        self.assertEqual(before, len(os.listdir(f"/proc/{script.process.pid}/fd")))

    def test_nothing_is_computed_while_the_first_process_loads_its_module(self):
        script = self.supervise("print('works', os.getpid(), flush=True); time.sleep(3600)", processes=3)
        self.working(script, 1)
        self.assert_idle(script)

    def test_processes_that_die_again_and_again_before_their_first_poll_are_given_up(self):
        script = self.supervise("print('starts', flush=True); os.kill(os.getpid(), 11)", source=AT_ONCE)
        self.assertEqual(6, self.wait(script))
        self.assertEqual(8, script.lines().count("starts"))
        script.wait_for("giving up")

    def test_they_are_not_given_up_while_another_has_polled_and_is_busy_with_its_task(self):
        child = "pass\ntry: os.mkdir(%r)\nexcept OSError: os.kill(os.getpid(), 11)\n"
        taken = os.path.join(self.folder(), "taken")
        script = self.supervise(child % taken + WORK, processes=2, source=AT_ONCE)
        pid = self.working(script, 1)[0]
        wait_until(
            lambda: script.process.poll() is not None or "\n".join(script.lines()).count("SIGSEGV") > 12,
            "the other has died more than eight times",
        )
        self.assertEqual((None, True), (script.process.poll(), alive(pid)))

    def test_burst_ends_when_every_process_has_found_the_queue_empty(self):
        script = self.supervise("say(b'lpd'); print('works', os.getpid(), flush=True)", processes=2, burst="burst")
        self.assertEqual(0, self.wait(script))
        self.assertEqual(2, len(self.working(script, 2)))

    def test_burst_replaces_a_process_that_a_task_has_ended_with_0(self):
        child = "say(b'lp'); print('works', os.getpid(), flush=True); os.path.exists(%r) and say(b'd'); open(%r, 'w')"
        again = os.path.join(self.folder(), "again")
        script = self.supervise(child % (again, again), burst="burst")
        self.assertEqual(0, self.wait(script))
        self.assertEqual(2, len(self.working(script, 2)))

    def test_burst_replaces_a_process_that_was_killed(self):
        child = "say(b'lp'); print('works', os.getpid(), flush=True); "
        child += "os.path.exists(%r) or (open(%r, 'w'), time.sleep(3600)); say(b'd')"
        again = os.path.join(self.folder(), "again")
        script = self.supervise(child % (again, again), burst="burst")
        pid = self.working(script, 1)[0]
        wait_until(lambda: os.path.exists(again), "the first process has left its mark")
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(0, self.wait(script))
        self.assertEqual(2, len(self.working(script, 2)))

    def test_a_process_that_does_not_end_after_the_second_signal_is_killed(self):
        source = SUPERVISE.replace(
            "import logging", "from sqstaskmaster._service import supervisor\nimport logging"
        ).replace("child, processes", "supervisor._LAST_GRACE_SECONDS = 0.2\nchild, processes")
        child = "signal.signal(15, lambda *_: print('told', flush=True)); "
        child += "say(b'lp'); print('works', os.getpid(), flush=True)\nwhile True: time.sleep(3600)"
        script = self.supervise(child, source=source)
        pid = self.working(script, 1)[0]
        script.process.send_signal(signal.SIGTERM)
        script.wait_for("told")
        script.process.send_signal(signal.SIGTERM)
        self.assertEqual(10, self.wait(script))
        self.assertFalse(alive(pid))
        self.assertNotIn("out of memory", "\n".join(script.lines()))

    def test_orphans_that_come_to_process_1_are_reaped(self):
        # As process 1 does, the supervisor here adopts what its descendants leave behind.
        source = "import ctypes; ctypes.CDLL(None).prctl(36, 1)\n" + SUPERVISE
        child = "pid = os.fork()\nif not pid:\n    pid = os.fork()\n    if not pid: time.sleep(0.05)\n"
        child += "    else: print('orphan', pid, flush=True)\n    os._exit(0)\n" + WORK
        script = self.supervise(child, source=source)
        pid = int(script.wait_for("orphan").split()[1])
        self.working(script, 1)
        wait_until(lambda: not alive(pid), "the orphan is reaped")


class TestAliveFile(unittest.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "alive")

    def start(self, child, processes=1, patience="90.0"):
        source = SUPERVISE.replace(
            "import logging", "from sqstaskmaster._service import supervisor\nimport logging"
        ).replace(
            "child, processes",
            f"supervisor._TOUCH_SECONDS, supervisor.POLL_PATIENCE_SECONDS = 0.02, {patience}\nchild, processes",
            1,
        )
        return Script(self, source, child, processes, "", self.path)

    def is_touched_again(self):
        """Touched now, not only once: its time is set back first."""
        if not self.path.exists():
            return False
        os.utime(self.path, (0, 0))
        return wait_until(lambda: self.path.stat().st_mtime > 0, "the file is touched")

    def test_it_is_touched_again_and_again_while_polls_succeed(self):
        self.start("say(b'lp')\nwhile True: say(b'p'); time.sleep(0.01)")
        wait_until(self.path.exists, "the file is there")
        self.assertTrue(self.is_touched_again())

    def test_it_is_touched_while_a_task_runs(self):
        self.start("say(b'lpb'); time.sleep(3600)", patience="0.0")
        wait_until(self.path.exists, "the file is there")
        self.assertTrue(self.is_touched_again())

    def test_it_is_touched_while_a_stopping_process_still_runs_its_task_and_the_other_has_ended(self):
        child = "print('works', os.getpid(), flush=True)\n"
        child += "if os.path.exists(%r): say(b'lp'); time.sleep(3600)\n"
        child += "open(%r, 'w'); signal.signal(15, lambda *_: None); say(b'lpb')\nwhile True: time.sleep(3600)"
        mark = str(self.path) + "-mark"
        script = self.start(child % (mark, mark), processes=2)
        wait_until(lambda: sum(line.startswith("works") for line in script.lines()) == 2, "both run")
        wait_until(self.path.exists, "the file is there")
        script.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "was ended by SIGTERM" in "\n".join(script.lines()), "one has ended")
        self.assertTrue(self.is_touched_again())

    def test_it_is_there_when_every_process_has_begun_to_poll(self):
        self.start("say(b'l'); time.sleep(3600)", processes=2)
        wait_until(self.path.exists, "the file is there")

    def test_it_is_not_there_before_every_process_has_begun_to_poll(self):
        child = "print('works', os.getpid(), flush=True)\n"
        child += "os.path.exists(%r) or (open(%r, 'w'), say(b'l'))\nprint('ready', flush=True); time.sleep(3600)"
        mark = str(self.path) + "-mark"
        script = self.start(child % (mark, mark), processes=2)
        wait_until(lambda: script.lines().count("ready") == 2, "both run")
        self.assertFalse(self.path.exists())
        script.process.kill()
        script.process.wait(DEADLINE_SECONDS)
        self.assertFalse(self.path.exists())

    def test_it_is_not_touched_when_the_last_poll_is_long_ago(self):
        script = self.start("say(b'lp'); print('ready', flush=True); time.sleep(3600)", patience="-1.0")
        script.wait_for("ready")
        self.wait_for_a_stop(script)
        self.assertFalse(self.path.exists())

    def wait_for_a_stop(self, script):
        script.process.send_signal(signal.SIGTERM)
        script.process.wait(DEADLINE_SECONDS)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pauses(script):
    return re.findall(r"another starts in (\S+) s", "\n".join(script.lines()))
