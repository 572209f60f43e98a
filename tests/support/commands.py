"""Running the installed command in tests."""

import codecs
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.support import DEADLINE_SECONDS, Script, environment, stop


def command():
    """The installed command where there is one beside this interpreter."""
    installed = shutil.which("sqstaskmaster", path=os.path.dirname(sys.executable))
    return [installed] if installed else [sys.executable, "-m", "sqstaskmaster"]


def online(**environ):
    """The environment that leads to the test server."""
    return {**environment(), "PYTHONPATH": os.pathsep.join(sys.path), **environ}


def offline(**environ):
    """An environment that leads nowhere: for commands that must not need SQS, or must not find it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return {**kept, **nowhere, "PYTHONPATH": os.pathsep.join(sys.path), **environ}


def run(*arguments, environ=None, **options):
    """Run a command to its end."""
    return subprocess.run(
        [*command(), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        env=environ or online(),
        **{"stdin": subprocess.DEVNULL, **options},
    )


def alive(pid):
    """Whether there is such a process. One that has ended is none, even where nobody reaps it, as in a container."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not os.path.exists("/proc/self")  # where there is no /proc, it has answered to the signal


def read(descriptor, until=None, seconds=DEADLINE_SECONDS):
    """What comes out of a pipe or a terminal until it has that text, or until the other side has been closed."""
    deadline = time.monotonic() + seconds
    text = ""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while until is None or until not in text:
        if not select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"not within {seconds} seconds: {until or 'the end'!r}; so far:\n{text}")
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # how Linux tells that the other side of a terminal was closed
            break
        if not piece:
            break
        text += decoder.decode(piece)
    return text


class Command(Script):
    """A command that goes on running, with what it prints kept line by line, as Script does."""

    def __init__(self, test, *arguments, cwd, before=(), **environ):
        folder = tempfile.TemporaryDirectory()
        test.addCleanup(folder.cleanup)
        self.output = os.path.join(folder.name, "output")
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [*before, *command(), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=online(**environ),
            )
        test.addCleanup(stop, self.process)

    def stop(self, number=signal.SIGTERM):
        """Send a signal and wait for the end. The exit code."""
        return self.end(number)
