"""SQS servers for the benchmarks: a program of this Python environment on a random loopback port, or one that runs.

with servers.running("roto") as endpoint:
    ...
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

STARTUP_SECONDS = 30

# What leads boto3 to a local server, and to nothing else.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}

# name: (pip requirement, program, arguments, environment)
SERVERS: dict[str, tuple[str, str, list[str], dict[str, str]]] = {
    "roto": ("roto-aws", "roto-server", ["--host", "127.0.0.1", "--port", "{port}", "--ephemeral"], {}),
    "moto": ("moto[server,sqs]", "moto_server", ["-H", "127.0.0.1", "-p", "{port}"], {}),
    "ministack": (
        "ministack",
        "ministack",
        [],
        {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": "{port}", "SERVICES": "sqs"},
    ),
}


class NotInstalled(RuntimeError):
    """The server that was asked for is not there; the text says how to get it."""


def installed() -> list[str]:
    return [name for name in SERVERS if _program(name)]


@contextlib.contextmanager
def running(name: str | None = None) -> Iterator[str]:
    """The endpoint of a server: `name` is one of SERVERS, or a URL, or None for the first that is installed."""
    if name and "://" in name:
        yield name.rstrip("/")
        return
    name = name or next(iter(installed()), None)
    if name is None:
        raise NotInstalled("No SQS server is installed: " + ", or ".join(map(_remedy, SERVERS)))
    program = _program(name)
    if program is None:
        raise NotInstalled(f"{name} is not installed: {_remedy(name)}")
    _, _, arguments, environment = SERVERS[name]
    port = _free_port()
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [program, *(argument.format(port=port) for argument in arguments)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                **CREDENTIALS,
                **{key: value.format(port=port) for key, value in environment.items()},
            },
        )
        try:
            _wait(server, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def environment(endpoint: str) -> dict[str, str]:
    """For the processes that are to use the server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**kept, **CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}


def _program(name: str) -> str | None:
    if name not in SERVERS:
        raise NotInstalled(f"{name!r} is none of {', '.join(SERVERS)}, and no URL")
    path = os.path.join(os.path.dirname(sys.executable), SERVERS[name][1])
    return path if os.path.exists(path) else None


def _remedy(name: str) -> str:
    return f"pip install '{SERVERS[name][0]}'"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(server: subprocess.Popen[bytes], port: int, log: object) -> None:
    until = time.monotonic() + STARTUP_SECONDS
    while server.poll() is None and time.monotonic() < until:
        with socket.socket() as client:
            client.settimeout(1)
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    log.seek(0)  # type: ignore[attr-defined]
    raise RuntimeError(f"{server.args} did not start:\n{log.read()}")  # type: ignore[attr-defined]
