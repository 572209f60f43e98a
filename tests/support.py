"""What the tests share: a real SQS server over HTTP, queues on it, and waiting with a deadline.

The server is moto's, started once on a random port when a test first needs it. `SQSTASKMASTER_TEST_ENDPOINT` names any
other SQS endpoint to be used in its place.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import uuid
from unittest import mock

import boto3
from botocore.config import Config

DEADLINE_SECONDS = 60

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def wait_until(condition, what, seconds=DEADLINE_SECONDS):
    """The first true value of condition(), asked again and again; fails the test when the deadline is over."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} seconds: {what}")
        time.sleep(0.01)


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port):
    with contextlib.closing(socket.socket()) as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


@functools.cache
def endpoint():
    """The URL of the SQS (and ECS) server; where there is none to be had, skips on a laptop and fails in CI."""
    given = os.environ.get("SQSTASKMASTER_TEST_ENDPOINT")
    if given:
        return given.rstrip("/")
    if importlib.util.find_spec("moto") is None:
        if os.environ.get("CI"):
            raise AssertionError("moto is not installed: pip install -e '.[dev]'")
        raise unittest.SkipTest("moto is not installed: pip install -e '.[dev]'")
    for _ in range(5):
        port = free_port()
        log = tempfile.TemporaryFile("w+")
        server = subprocess.Popen(
            [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, **ENVIRONMENT},
        )
        wait_until(lambda: server.poll() is not None or answers(port), "moto answers")
        if server.poll() is None:
            atexit.register(stop, server)
            return f"http://127.0.0.1:{port}"
        log.seek(0)
        print(log.read(), file=sys.stderr)  # another process took the port in between: try one more
    raise AssertionError("moto did not start")


def stop(process):
    process.kill()
    process.wait()


def environment():
    """The environment in which the standard AWS configuration leads to the test server, and to nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # No user's ~/.aws either.
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return {**kept, **ENVIRONMENT, **nowhere, "AWS_ENDPOINT_URL": endpoint()}


def client(service="sqs"):
    return boto3.session.Session().client(
        service,
        endpoint_url=endpoint(),
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"mode": "standard"}),
    )


class ServerTestCase(unittest.TestCase):
    """A test with a real SQS server; the process's environment leads to it for as long as the test runs."""

    def setUp(self):
        super().setUp()
        environ = mock.patch.dict(os.environ, environment(), clear=True)
        environ.start()
        self.addCleanup(environ.stop)
        # boto3 keeps one default session, which keeps what it once read of the environment.
        boto3.DEFAULT_SESSION = None
        self.addCleanup(setattr, boto3, "DEFAULT_SESSION", None)
        self.sqs = client()

    def create_queue(self, visibility=30, max_receive_count=None, **attributes):
        """The URL of a new queue, deleted after the test; with max_receive_count also a dead-letter queue."""
        attributes["VisibilityTimeout"] = str(visibility)
        if max_receive_count is not None:
            dead_letters = self.create_queue()
            arn = self.sqs.get_queue_attributes(QueueUrl=dead_letters, AttributeNames=["QueueArn"])
            attributes["RedrivePolicy"] = json.dumps(
                {"deadLetterTargetArn": arn["Attributes"]["QueueArn"], "maxReceiveCount": str(max_receive_count)}
            )
            self.dead_letters = dead_letters
        name = f"test-{uuid.uuid4().hex}" + (".fifo" if attributes.get("FifoQueue") == "true" else "")
        url = self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        self.addCleanup(self.sqs.delete_queue, QueueUrl=url)
        return url

    def receive(self, url, wait=0, visibility=30):
        """The messages (at most 10) that a poll brings, as boto3 gives them."""
        answer = self.sqs.receive_message(
            QueueUrl=url,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
            MaxNumberOfMessages=10,
            WaitTimeSeconds=wait,
            VisibilityTimeout=visibility,
        )
        return answer.get("Messages", [])

    def counts(self, url):
        """(visible, in flight, delayed)"""
        names = ("", "NotVisible", "Delayed")
        names = [f"ApproximateNumberOfMessages{name}" for name in names]
        found = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return tuple(int(found[name]) for name in names)


class Script:
    """A Python script as a user would write it, run as a process of its own against the test server.

    What it prints is kept line by line in a file, which a test can wait on.
    """

    def __init__(self, test, source, *arguments, **environ):
        folder = tempfile.TemporaryDirectory()
        test.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "script.py")
        with open(self.path, "w") as script:
            script.write(source)
        self.output = os.path.join(folder.name, "output")
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", self.path, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment(), "PYTHONPATH": os.pathsep.join(sys.path), **environ},
            )
        test.addCleanup(stop, self.process)

    def lines(self):
        with open(self.output) as output:
            return output.read().splitlines()

    def wait_for(self, text, seconds=DEADLINE_SECONDS):
        """The first line with the text in it, when it has come."""

        def found():
            line = next((line for line in self.lines() if text in line), None)
            if line is None and self.process.poll() is not None and not any(text in line for line in self.lines()):
                raise AssertionError(
                    f"ended with {self.process.returncode} before {text!r}:\n" + "\n".join(self.lines())
                )
            return line

        return wait_until(found, f"the script prints {text!r}", seconds)

    def end(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)
