"""The demo's drawing process: starts the worker process, reads its events and shows them as they come."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, TextIO

import sqstaskmaster
from sqstaskmaster._cli.demo import picture
from sqstaskmaster._cli.demo.events import ENDS, Event, Kind
from sqstaskmaster._cli.demo.scenarios import CLAIM_SECONDS, EXTEND_EVERY_SECONDS, SCENARIOS

_FRAME_SECONDS = 0.1
_PIPE_COLUMNS = 96

# How long a worker that is to end may take to give its task back and to clear the queue of what it sent.
_END_SECONDS = 10.0

# On a queue that others use, the demo's messages may take a while; but it does not wait for ever.
_LONGEST_SECONDS = 300.0

_INTERRUPTED = 130

_LOCAL_NOTE = (
    "SQS makes what was kept visible again, and after maxReceiveCount tries moves it to "
    "the dead-letter queue. See that on a queue of yours: --queue-url URL."
)


class Terminal:
    """Draws over what it drew last."""

    def __init__(self, stream: TextIO, plan: picture.Plan, colour: bool, glyphs: picture.Glyphs) -> None:
        self._stream = stream
        self._plan = plan
        self._colour = colour
        self._glyphs = glyphs
        self._drawn = 0
        self._size = self._measure()

    def begin(self) -> None:
        self._stream.write("\x1b[?25l")  # no cursor while the picture moves

    def tell(self, event: Event) -> None:
        """Does nothing: the next frame shows the event."""

    def frame(self, events: list[Event], now: float, finished: bool = False) -> None:
        size = self._measure()
        look = picture.Look(size.columns, self._colour, self._glyphs)
        lines = picture.picture(self._plan, events, now, look, finished)
        if not finished:
            # What has scrolled off the screen cannot be drawn over.
            lines = lines[: size.lines - 1]
        back = f"\x1b[{self._drawn}F" if self._drawn else ""
        # A resized terminal has rewrapped the lines. What is left below is cleared last: clearing from the first line
        # on makes some terminals keep the old picture in their scrollback.
        clear = "\x1b[J" if finished or size != self._size else ""
        self._stream.write(back + "".join(f"{text}\x1b[K\n" for text in lines) + clear)
        self._stream.flush()
        self._drawn, self._size = len(lines), size

    def end(self) -> None:
        self._stream.write("\x1b[?25h")
        self._stream.flush()

    def _measure(self) -> os.terminal_size:
        return shutil.get_terminal_size()


class Pipe:
    """Writes a line for each event, and the picture once, at the end."""

    def __init__(self, stream: TextIO, plan: picture.Plan, glyphs: picture.Glyphs) -> None:
        self._stream = stream
        self._plan = plan
        self._glyphs = glyphs

    def begin(self) -> None:
        pass

    def tell(self, event: Event) -> None:
        if event.kind is Kind.TROUBLE:
            return  # reported on standard error
        self._stream.write(picture.line(event, self._plan) + "\n")
        self._stream.flush()

    def frame(self, events: list[Event], now: float, finished: bool = False) -> None:
        if finished:
            columns = shutil.get_terminal_size((_PIPE_COLUMNS, 0)).columns
            look = picture.Look(columns, glyphs=self._glyphs)
            lines = ["", *picture.picture(self._plan, events, now, look, finished)]
            self._stream.write("".join(f"{text}\n" for text in lines))
            self._stream.flush()

    def end(self) -> None:
        pass


def show(url: str | None, stream: TextIO | None = None) -> int:
    """Run the worker process to its end and show its events. Returns the exit code."""
    plan = picture.Plan(
        titles=[scenario.title for scenario in SCENARIOS],
        limits=[scenario.limit for scenario in SCENARIOS],
        claim=CLAIM_SECONDS,
        extend_every=EXTEND_EVERY_SECONDS,
        length=sum(scenario.seconds for scenario in SCENARIOS) + CLAIM_SECONDS,
        queue=f"queue {url.rpartition('/')[2]}" if url else "LocalQueue",
        note="" if url else _LOCAL_NOTE,
    )
    display = _display(stream or sys.stdout, plan)
    with tempfile.TemporaryFile("w+") as errors:
        worker = _start(url, errors)
        view = Show(worker, display)
        try:
            display.begin()
            view.follow(until=time.monotonic() + _LONGEST_SECONDS)
            code = _end(worker)
        except KeyboardInterrupt:
            worker.send_signal(signal.SIGINT)
            code = _INTERRUPTED
            with contextlib.suppress(KeyboardInterrupt):  # the second means now
                view.follow(until=time.monotonic() + _END_SECONDS)
        except BrokenPipeError:
            # Our reader, `head` for example, has seen enough. The interpreter must not flush into the pipe again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        finally:
            if worker.poll() is None:
                worker.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(_END_SECONDS)
            with contextlib.suppress(BrokenPipeError):
                display.end()
        errors.seek(0)
        return _verdict(code, view.events, errors.read())


def _end(worker: subprocess.Popen[bytes]) -> int:
    """The exit code of a worker that has sent all its events; one that does not end is killed."""
    try:
        return worker.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        return worker.wait(_END_SECONDS)


def _display(stream: TextIO, plan: picture.Plan) -> Terminal | Pipe:
    try:
        "".join(vars(picture.UNICODE).values()).encode(stream.encoding or "ascii")
        glyphs = picture.UNICODE
    except UnicodeEncodeError:
        glyphs = picture.ASCII
    if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        # https://no-color.org: any value but the empty one.
        return Terminal(stream, plan, colour=not os.environ.get("NO_COLOR"), glyphs=glyphs)
    return Pipe(stream, plan, glyphs)


def _start(url: str | None, errors: IO[str]) -> subprocess.Popen[bytes]:
    """Start the worker, in a session of its own: Ctrl-C reaches only this process, which passes it on once."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(sqstaskmaster.__file__)))
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "sqstaskmaster._cli.demo.worker", *([url] if url else [])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


class Show:
    """The worker's events, shown as they come."""

    def __init__(self, worker: subprocess.Popen[bytes], display: Terminal | Pipe) -> None:
        self.events: list[Event] = []
        self._display = display
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._began: float | None = None
        threading.Thread(target=self._read, args=(worker.stdout,), name="reader", daemon=True).start()

    def _read(self, lines: IO[bytes]) -> None:
        with lines:
            for text in lines:
                self._events.put(Event.from_line(text))
        self._events.put(None)

    def follow(self, until: float) -> None:
        """Show the worker until it ends, or until that time: a frame every so often, and at each event."""
        while time.monotonic() < until:
            try:
                event = self._events.get(timeout=_FRAME_SECONDS)
            except queue.Empty:
                pass
            else:
                if event is None:
                    break
                self._take(event)
            self._display.frame(self.events, self._now())
        if any(event.kind is Kind.RECEIVED for event in self.events):
            self._display.frame(self.events, self._now(), finished=True)

    def _take(self, event: Event) -> None:
        if self._began is None:
            self._began = time.monotonic() - event.at
        self.events.append(event)
        self._display.tell(event)

    def _now(self) -> float:
        return time.monotonic() - self._began if self._began is not None else 0.0


def _verdict(code: int, events: list[Event], errors: str) -> int:
    """The exit code; first reports on standard error what went wrong, if anything."""
    if code == _INTERRUPTED:
        given_back = any(event.kind is Kind.INTERRUPTED for event in events)
        told = "interrupted: the running task was stopped and its message given back" if given_back else "interrupted"
        print(told, file=sys.stderr)
        return code
    trouble = [event.text for event in events if event.kind is Kind.TROUBLE]
    if trouble:
        print(f"sqstaskmaster demo: {trouble[0]}", file=sys.stderr)
        return 2
    if code:
        print(errors, end="", file=sys.stderr)
        return 1
    ends = {event.row: event.kind for event in events if event.kind in ENDS}
    wrong = [
        f"{scenario.title!r} ended as {ends[row].value if row in ends else 'never received'}, not {scenario.ends.value}"
        for row, scenario in enumerate(SCENARIOS)
        if ends.get(row) is not scenario.ends
    ]
    if wrong:
        print(f"sqstaskmaster demo: {'; '.join(wrong)}. Does somebody else consume from this queue?", file=sys.stderr)
    return 1 if wrong else 0
