"""Starts an SQS server for a benchmark, on loopback, and measures rows side by side."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

# How long a killed process may take to be gone.
END_SECONDS = 30

REMEDY = "no fast SQS server is installed: pip install roto-aws, or set SQSTASKMASTER_TEST_ENDPOINT to one that runs"


@contextlib.contextmanager
def fast_server():
    """The endpoint of a server that is faster than what is measured: roto, or SQSTASKMASTER_TEST_ENDPOINT.

    Everything that this process starts from here on ends with it, however it ends.
    """
    import tests  # noqa: F401  # guards the process that imports it

    given = os.environ.get("SQSTASKMASTER_TEST_ENDPOINT")
    if given:
        yield configure(given)
        return
    beside_python = os.path.join(os.path.dirname(sys.executable), "roto-server")
    program = beside_python if os.path.exists(beside_python) else shutil.which("roto-server")
    if program is None:
        sys.exit(REMEDY)
    port = free_port()
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--ephemeral"]
    # A killed server leaves its folder behind.
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": folder}
        )
        try:
            wait_for_port(port)
            yield configure(f"http://127.0.0.1:{port}")
        finally:
            server.kill()
            server.wait(END_SECONDS)


def configure(endpoint):
    """Point the standard AWS configuration of this process and its children at the endpoint only."""
    os.environ.update(
        AWS_ENDPOINT_URL=endpoint,
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
    )
    return endpoint


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_port(port, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.closing(socket.socket()) as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    sys.exit(f"the server did not answer on port {port} within {seconds} seconds")


def row(name, ours, base, unit, goal):
    """One printed row: a measure, ours and the base's median, their ratio, and the goal."""
    our, other = statistics.median(ours), statistics.median(base)
    ratio = our / other if other else float("nan")
    print(f"{name:<44} {our:>10.3f} {other:>10.3f} {unit:<10} {ratio:>7.2f}   {goal}", flush=True)


def heading(ours, base):
    print(f"{'':<44} {ours:>10} {base:>10} {'':<10} {'ratio':>7}   goal", flush=True)
