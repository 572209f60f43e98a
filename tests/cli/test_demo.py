"""The demo: the picture as a pure function, and the whole thing in a pipe, on a terminal and on a real queue."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import unittest
import uuid

from sqstaskmaster._cli.demo import picture, screen
from sqstaskmaster._cli.demo.events import ENDS, Event, Kind
from sqstaskmaster._cli.demo.scenarios import SCENARIOS
from tests import support
from tests.support.commands import read

PLAN = picture.Plan(
    titles=["first", "second one", "third"],
    limits=[30.0, 30.0, 2.5],
    claim=2,
    extend_every=0.8,
    length=10.0,
    queue="LocalQueue",
    note="A last word.",
)

EVENTS = [
    Event(0.0, Kind.SENT, 0),
    Event(0.1, Kind.SENT, 1),
    Event(0.2, Kind.SENT, 2),
    Event(0.3, Kind.RECEIVED, 0, claim=2),
    Event(1.1, Kind.EXTENDED, 0, claim=2),
    Event(1.9, Kind.EXTENDED, 0, claim=2),
    Event(2.5, Kind.DONE, 0),
    Event(2.6, Kind.RECEIVED, 1, claim=2),
    Event(3.0, Kind.FAILED, 1, text="ValueError: no price"),
    Event(3.1, Kind.ASIDE),
    Event(3.2, Kind.RECEIVED, 2, claim=2),
    Event(4.0, Kind.EXTENDED, 2, claim=2),
    Event(5.7, Kind.TIMED_OUT, 2, stack='Current thread:\n  File "/far/away/solver.py", line 7 in solve\n'),
    Event(6.0, Kind.BACK, 1, text="2"),
]

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def told(seconds):
    """The events until then."""
    return [event for event in EVENTS if event.at <= seconds]


def drawn(seconds, width=100, **look):
    return picture.picture(PLAN, told(seconds), seconds, picture.Look(width, **look), finished=seconds > 6)


def bar(title, seconds):
    """The row with that title, without its title."""
    return next(line for line in drawn(seconds) if line.startswith(f" {title}")).partition(title)[2]


class TestPicture(unittest.TestCase):
    def test_a_bar_grows_while_its_task_runs(self):
        self.assertLess(bar("first", 0.9).count("━"), bar("first", 1.0 + 0.9).count("━"))

    def test_each_extension_is_a_mark(self):
        self.assertEqual([bar("first", seconds).count("◆") for seconds in (0.9, 1.2, 2.0, 7.0)], [0, 1, 2, 2])

    def test_the_claim_reaches_ahead_of_a_running_task_and_is_pushed_on_by_an_extension(self):
        self.assertLess(bar("first", 1.0).rindex("┄"), bar("first", 1.2).rindex("┄"))

    def test_a_message_that_waits_is_dots_until_now(self):
        self.assertIn("·", bar("third", 2.0))
        self.assertNotIn("━", bar("third", 2.0))
        self.assertIn("in the queue", bar("third", 2.0))

    def test_finished_work_holds_no_claim(self):
        self.assertIn("✓", bar("first", 2.5))
        self.assertNotIn("┄", bar("first", 2.5))
        self.assertIn("done in 2.2 s, deleted", bar("first", 2.5))

    def test_what_is_kept_holds_its_claim_and_then_is_visible_again(self):
        self.assertRegex(bar("second one", 7.0), r"●━*✗┄+·*↺ +ValueError raised, kept")

    def test_what_stopped_at_its_limit_names_the_limit(self):
        self.assertRegex(bar("third", 7.0), r"■.*stopped at its 2.5 s limit, kept")

    def test_a_task_is_where_its_time_is_on_the_axis(self):
        lines = drawn(7.0)
        numbers, rule = lines[1], lines[2]
        four = numbers.index("4")
        self.assertEqual(rule[four], "┬")
        self.assertEqual(next(line for line in lines if line.startswith(" third"))[four], "◆")

    def test_half_of_the_time_is_half_of_the_axis(self):
        rule = drawn(5.0)[2].strip()
        self.assertAlmostEqual(rule.index("▼") / len(rule), 5.0 / PLAN.length, delta=0.03)

    def test_no_number_on_the_axis_is_cut_off(self):
        for width in range(80, 130):
            numbers = [int(number) for number in drawn(25.0, width)[1].replace("s", "").split()]
            step = numbers[1]
            self.assertEqual(numbers, list(range(0, numbers[-1] + 1, step)), f"width {width}")

    def test_the_stack_of_a_stopped_task_is_shown_without_folders(self):
        self.assertIn('   File "solver.py", line 7 in solve', drawn(7.0))

    def test_the_last_lines_sum_up(self):
        end = " ".join(line.strip() for line in drawn(7.0)[-3:])
        self.assertIn("3 messages in 7.0 s: 1 done, 1 raised, 1 over the limit", end)
        self.assertIn("A last word.", end)

    def test_no_line_is_wider_than_the_terminal_at_any_time(self):
        for width in (*range(40, 130), 200, 400):
            for seconds in (0.0, 0.2, 1.0, 3.05, 5.7, 7.0, 25.0, 4000.0):
                longest = max(map(len, drawn(seconds, width)))
                self.assertLessEqual(longest, width, f"width {width} at {seconds} s")

    def test_no_line_of_the_demos_own_plan_is_wider_than_forty_columns(self):
        plan = dataclasses.replace(PLAN, titles=["malformed body"], limits=[2.5])
        for kind in ENDS:
            events = [
                Event(0.1, Kind.SENT, 0),
                Event(0.2, Kind.RECEIVED, 0, claim=2),
                Event(1.0, kind, 0, text="x" * 60),
            ]
            lines = picture.picture(plan, events, 1.5, picture.Look(40))
            self.assertLessEqual(max(map(len, lines)), 40, kind)

    def test_the_last_picture_fits_a_terminal_of_80_by_24_with_the_prompt_below(self):
        titles = [scenario.title for scenario in SCENARIOS]
        plan = dataclasses.replace(PLAN, titles=titles, limits=[2.5] * len(titles), note=screen._LOCAL_NOTE)
        stack = 'Current thread:\n  File "scenarios.py", line 115, in run\n    self.total = sum(range(10**12))\n'
        events = [Event(0.0, Kind.SENT, row) for row in range(len(titles))]
        events += [Event(1.0, Kind.RECEIVED, row, claim=2) for row in range(len(titles))]
        kinds = [Kind.DONE, Kind.DONE, Kind.REFUSED, Kind.FAILED, Kind.TIMED_OUT, Kind.STUCK, Kind.TIMED_OUT, Kind.DONE]
        events += [Event(2.0, kind, row, stack=stack if row == 6 else "") for row, kind in enumerate(kinds)]
        lines = picture.picture(plan, events, 14.7, picture.Look(80), finished=True)
        self.assertLessEqual(len(lines), 23, "\n".join(lines))
        self.assertLessEqual(max(map(len, lines)), 80)

    def test_of_a_stack_this_packages_own_frames_are_left_out(self):
        stack = '  File "/a/sqstaskmaster/process_handler.py", line 1 in run_task\n    handler.run()\n'
        stack += '  File "/a/sqstaskmaster/_cli/demo/scenarios.py", line 2 in run\n    sum()\n'
        row = picture.Row(stack=stack)
        said = "\n".join(picture._stack("hung", row, picture.Look(80)))
        self.assertNotIn("process_handler", said)
        self.assertIn('File "scenarios.py", line 2 in run', said)

    def test_a_narrow_terminal_gives_the_bar_the_whole_width(self):
        lines = drawn(7.0, width=50)
        title = next(number for number, line in enumerate(lines) if "first" in line)
        self.assertIn("deleted", lines[title])
        self.assertIn("●", lines[title + 1])

    def test_colour_changes_no_character(self):
        for width in (50, 100):
            plain, coloured = drawn(5.0, width), drawn(5.0, width, colour=True)
            self.assertEqual([ESCAPES.sub("", line).rstrip() for line in coloured], plain)
            self.assertTrue(any("\x1b[" in line for line in coloured))

    def test_without_colour_there_is_no_escape(self):
        self.assertNotIn("\x1b", "".join(drawn(5.0)))

    def test_where_the_output_takes_ascii_only_the_picture_is_ascii(self):
        self.assertTrue("".join(drawn(7.0, glyphs=picture.ASCII)).isascii())

    def test_every_kind_of_event_has_a_line(self):
        for kind in Kind:
            self.assertIn("3.20 s", picture.line(Event(3.2, kind, 1, "some text"), PLAN))

    def test_every_end_has_a_verdict_that_fits_its_column(self):
        for kind in ENDS:
            row = picture.Row(sent=0.0, received=1.0, ended=3590.0, end=kind, text="ValueError: text")
            words, style = picture.verdict(row, 2.5, 3600.0)
            self.assertTrue(0 < len(words) < 33 and style, kind)


class TestEvent(unittest.TestCase):
    def test_an_event_survives_the_pipe(self):
        for event in EVENTS:
            self.assertEqual(Event.from_line(event.to_line()), event)

    def test_an_event_is_written_to_the_pipe_in_one_piece(self):
        line = Event(1.0, Kind.FAILED, 1, text="ü" * 9000, stack="ß" * 9000).to_line()
        self.assertLessEqual(len(line), 4096)
        self.assertEqual(line.count(b"\n"), 1)
        self.assertTrue(Event.from_line(line).stack)


# -- the whole demo ----------------------------------------------------------------------------------------------


def command(*arguments):
    return [sys.executable, "-m", "sqstaskmaster", "demo", *arguments]


def environment(**changes):
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8", **changes}
    found |= {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error::ResourceWarning"}  # it says what it leaves open
    return {name: value for name, value in found.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}


class Piped:
    """The demo, writing into files as it would into a pipe."""

    def __init__(self, *arguments, env):
        self.out, self.err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command(*arguments), stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.err, env=env
        )

    def output(self):
        return _read(self.out)

    def errors(self):
        return _read(self.err)

    def wait(self):
        return self.process.wait(support.DEADLINE_SECONDS)

    def close(self):
        support.stop(self.process)
        self.out.close()
        self.err.close()


def _read(file):
    # By its descriptor: the writer shares the file's position with us.
    return os.pread(file.fileno(), 1 << 20, 0).decode()


class OnTerminal:
    """The demo on a terminal of 30 lines of 100 columns."""

    def __init__(self, **changes):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        env = {**environment(TERM="xterm-256color"), **changes}
        self.process = subprocess.Popen(command(), stdin=slave, stdout=slave, stderr=slave, env=env)
        os.close(slave)
        self.text = ""

    def read(self, until=None):
        """What it writes until that text comes, or until it ends."""
        self.text += read(self._master, until)
        return self.text

    def wait(self):
        return self.process.wait(support.DEADLINE_SECONDS)

    def close(self):
        support.stop(self.process)
        os.close(self._master)


@functools.cache
def run_on_terminal():
    """(exit code, text): a whole run on a LocalQueue, shown on a terminal, while one on a real queue goes on."""
    with contextlib.suppress(unittest.SkipTest):
        run_on_queue()  # takes as long, and is waited for later
    shown = OnTerminal()
    try:
        shown.read()
        return shown.wait(), shown.text
    finally:
        shown.close()


@functools.cache
def run_on_queue():
    """(URL, demo): a whole run, begun, on a real queue that others use too, writing into a pipe."""
    sqs = support.client()
    unittest.addModuleCleanup(sqs.close)
    url = sqs.create_queue(QueueName=f"demo-{uuid.uuid4().hex}", Attributes={"VisibilityTimeout": "30"})["QueueUrl"]
    unittest.addModuleCleanup(sqs.delete_queue, QueueUrl=url)
    send_of_others(sqs, url)
    demo = Piped("--queue-url", url, env=environment(**support.environment()))
    unittest.addModuleCleanup(demo.close)
    return url, demo


def send_of_others(sqs, url):
    for number in range(3):
        sqs.send_message(QueueUrl=url, MessageBody=f"another's {number}")


class TestDemo(unittest.TestCase):
    """The whole demo on a LocalQueue: real tasks, real signals."""

    def test_it_ends_well(self):
        code, text = run_on_terminal()
        self.assertEqual(0, code)
        self.assertNotIn("ResourceWarning", text)

    def test_its_tasks_take_less_than_twenty_seconds(self):
        self.assertLess(sum(scenario.seconds for scenario in SCENARIOS), 20)

    def test_every_scenario_ends_as_it_should(self):
        words = {
            Kind.DONE: "deleted",
            Kind.FAILED: "raised, kept",
            Kind.TIMED_OUT: "limit, kept",
            Kind.STUCK: "stopped, kept",
            Kind.REFUSED: "hurt nobody",
        }
        last = ESCAPES.sub("", re.split(r"\x1b\[\d+F", run_on_terminal()[1])[-1])
        final = [line.rstrip() for line in last.splitlines()]
        for scenario in SCENARIOS:
            line = next(line for line in final if line.startswith(f" {scenario.title} "))
            self.assertTrue(line.endswith(words[scenario.ends]), line)

    def test_on_a_terminal_the_picture_is_in_colour_and_drawn_over_itself(self):
        text = run_on_terminal()[1]
        frames = re.split(r"\x1b\[\d+F", text)
        self.assertGreater(len(frames), 30)
        self.assertIn("\x1b[32m", text)
        bars = [ESCAPES.sub("", frame).partition("long task")[2].split("\n")[0] for frame in frames]
        lengths = [sum(map(bar.count, "━◆")) for bar in bars]
        self.assertGreater(len(set(lengths)), 10, "the bar grows from frame to frame")
        self.assertNotIn("Traceback", text)

    def test_the_cursor_is_hidden_while_it_draws_and_shown_again(self):
        text = run_on_terminal()[1]
        self.assertLess(text.index("\x1b[?25l"), text.index("long task"))
        self.assertTrue(text.rstrip().endswith("\x1b[?25h"))

    def test_no_color_is_honoured_and_control_c_ends_it_cleanly(self):
        shown = OnTerminal(NO_COLOR="1")
        self.addCleanup(shown.close)
        shown.read(until="running 0.2 s")
        shown.process.send_signal(signal.SIGINT)
        text = shown.read()
        self.assertEqual(shown.wait(), 130)
        self.assertFalse(re.search(r"\x1b\[[0-9;]*m", text))
        self.assertIn("interrupted", text)
        self.assertNotIn("Traceback", text)
        self.assertIn("\x1b[?25h", text)

    def test_a_reader_that_leaves_ends_it_without_a_traceback(self):
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command(), stdout=subprocess.PIPE, stderr=errors, env=environment())
            self.addCleanup(support.stop, process)
            self.addCleanup(process.stdout.close)
            read(process.stdout.fileno(), until="\n")
            process.stdout.close()
            self.assertEqual(process.wait(support.DEADLINE_SECONDS), 1)
            self.assertEqual(_read(errors), "")

    def test_a_url_that_is_none_is_one_sentence_and_the_exit_code_of_a_wrong_queue(self):
        found = subprocess.run(
            command("--queue-url", "nonsense"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=support.DEADLINE_SECONDS,
        )
        self.assertEqual((found.returncode, found.stdout), (4, ""))
        self.assertIn("'nonsense' is not a queue URL", found.stderr)
        self.assertEqual(found.stderr.count("\n"), 1)


class TestDemoOnQueue(support.ServerTestCase):
    """The demo on a real SQS server, in a queue that others use too."""

    def assert_only_the_others_are_left(self, url):
        support.wait_until(lambda: self.counts(url) == (3, 0, 0), "the messages of others are visible again")
        left = self.receive(url)
        self.assertEqual({message["Body"] for message in left}, {f"another's {number}" for number in range(3)})
        # Once by the demo, and once by this test.
        self.assertEqual({message["Attributes"]["ApproximateReceiveCount"] for message in left}, {"2"})

    def test_in_a_pipe_there_is_a_line_for_each_event_in_order_and_then_the_picture_once(self):
        demo = run_on_queue()[1]
        self.assertEqual((demo.wait(), demo.errors()), (0, ""))
        output = demo.output()
        self.assertNotIn("\x1b", output)
        self.assertEqual(output.count("sqstaskmaster demo"), 1)
        lines = output.partition("sqstaskmaster demo")[0].splitlines()
        seen = [line.split("  ", 1)[1] for line in lines if "long task" in line]
        self.assertEqual("sent", seen[0].split()[-1])
        self.assertIn("received", seen[1])
        self.assertTrue(all("claim extended" in line for line in seen[2:-1]) and len(seen) >= 6, seen)
        self.assertIn("finished, message deleted", seen[-1])
        times = [float(line.split()[0]) for line in lines if line.strip()]
        # Told by several threads, so two that come at once may change places.
        self.assertTrue(all(later > earlier - 0.5 for earlier, later in zip(times, times[1:])), times)

    def test_it_consumes_what_it_sent_and_gives_back_the_rest(self):
        url, demo = run_on_queue()
        self.assertEqual(demo.wait(), 0, demo.errors())
        output = demo.output()
        for scenario in SCENARIOS:
            if scenario.ends is not Kind.DONE:
                self.assertRegex(output, rf"{scenario.title} +visible again, receive number 2")
        self.assert_only_the_others_are_left(url)

    def test_control_c_gives_everything_back_and_takes_its_own_away(self):
        url = self.create_queue()
        send_of_others(self.sqs, url)
        demo = Piped("--queue-url", url, env=environment(**support.environment()))
        self.addCleanup(demo.close)
        support.wait_until(lambda: re.search(r"long task +claim extended", demo.output()), "the long task runs")
        demo.process.send_signal(signal.SIGINT)
        self.assertEqual(demo.wait(), 130)
        self.assertRegex(demo.output(), r"long task +interrupted; message given back")
        self.assert_only_the_others_are_left(url)


if __name__ == "__main__":
    unittest.main()
