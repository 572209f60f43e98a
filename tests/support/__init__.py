"""What the tests share: a real SQS server over HTTP, queues on it, and waiting with a deadline.

The server is moto's, started once on a random port, for all processes of a run. `SQSTASKMASTER_TEST_ENDPOINT` names any
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
import threading
import time
import unittest
import uuid
from unittest import mock

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.loaders import create_loader

#: In the environment of what a run starts: the URL of the run's server.
_SERVER = "SQSTASKMASTER_TESTS_SERVER"

DEADLINE_SECONDS = 60

# No look takes more of a deadline than this: a virtual machine may stand still for half a minute, and with it what is
# waited for.
_LOOK_SECONDS = 1.0

# Coverage is being measured, in tasks too, which have to write it down before they end.
IS_MEASURED = threading.gettrace() is not None

# Binds before it tells its port, so that no other process can come in between, and ends with whoever started it,
# however that one ends: its standard input is a pipe that nobody writes to.
# One request at a time: moto's own threads give a message to two receivers, and put back what another has just deleted.
MOTO = """
import functools, os, sys, threading
from moto.server import ThreadedMotoServer
from moto.sqs.models import Queue, SQSBackend

lock = threading.RLock()

def one_at_a_time(method):
    @functools.wraps(method)
    def call(*args, **kwargs):
        with lock:
            return method(*args, **kwargs)

    return call

def let_others_in(wait):
    def waiting(*args, **kwargs):
        lock.release()
        try:
            return wait(*args, **kwargs)
        finally:
            lock.acquire()

    return waiting

for name in ("send_message", "receive_message", "delete_message", "change_message_visibility", "purge_queue"):
    setattr(SQSBackend, name, one_at_a_time(getattr(SQSBackend, name)))
Queue.wait_for_messages = let_others_in(Queue.wait_for_messages)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
os._exit(0)
"""

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def wait_until(condition, what, seconds=DEADLINE_SECONDS):
    """The first true value of condition(), asked again and again; fails the test when the deadline is over."""
    left = seconds
    while True:
        began = time.monotonic()
        value = condition()
        if value:
            return value
        if left <= 0:
            raise AssertionError(f"not within {seconds} seconds: {what}")
        # A look at the server takes its processor time too, and the tests beside this one want some.
        time.sleep(max(0.01, 4 * min(time.monotonic() - began, 0.02)))
        left -= min(time.monotonic() - began, _LOOK_SECONDS)


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
    given = os.environ.get("SQSTASKMASTER_TEST_ENDPOINT") or os.environ.get(_SERVER)
    if given:
        return given.rstrip("/")
    if importlib.util.find_spec("moto") is None:
        if os.environ.get("CI"):
            raise AssertionError("moto is not installed: pip install -e '.[dev]'")
        raise unittest.SkipTest("moto is not installed: pip install -e '.[dev]'")
    folder = tempfile.TemporaryDirectory()
    output = os.path.join(folder.name, "moto")
    with open(output, "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-u", "-c", MOTO],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # Neither a proxy nor an endpoint of the user's may come between.
            env={**{name: value for name, value in os.environ.items() if not name.startswith("AWS_")}, **ENVIRONMENT},
        )
    atexit.register(_stop_own, os.getpid(), server, folder)

    def address():
        found = [line for line in whole_lines(output) if line.startswith("http://127.0.0.1:")]
        if not found and server.poll() is not None:
            raise AssertionError(f"moto ended with {server.returncode}:\n" + "\n".join(whole_lines(output)))
        return found and found[0]

    return wait_until(address, "moto tells its address")


def share_endpoint():
    """Let all processes that are started from here on have the server of this one."""
    with contextlib.suppress(unittest.SkipTest, AssertionError):  # for the tests that need it to say
        os.environ[_SERVER] = endpoint()


def _stop_own(owner, server, folder):
    # A process forked from this one runs the same functions when it ends.
    if os.getpid() == owner:
        stop(server)
        folder.cleanup()


def lacks(what):
    """To be called where the server did not do what SQS does: skips on a server that was given, fails on our own."""
    if os.environ.get("SQSTASKMASTER_TEST_ENDPOINT"):
        raise unittest.SkipTest(f"the server of SQSTASKMASTER_TEST_ENDPOINT lacks {what}")
    raise AssertionError(f"the server lacks {what}")


def stop(process):
    """Kill a process (one that has ended already does no harm), and wait for its end."""
    process.kill()
    process.wait(DEADLINE_SECONDS)
    if process.stdin:
        process.stdin.close()


def whole_lines(path):
    """The lines of a file that another process writes, less a last one that it has not ended yet."""
    with open(path, errors="replace") as output:
        return output.read().split("\n")[:-1]


def environment():
    """The environment in which the standard AWS configuration leads to the test server, and to nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # No user's ~/.aws either.
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return {**kept, **ENVIRONMENT, **nowhere, "AWS_ENDPOINT_URL": endpoint()}


@functools.cache
def _loader():
    return create_loader()


def session():
    """A new boto3 session, which has read nothing of the environment yet, but shares the models of the services.

    To read those takes longer than most tests do.
    """
    core = botocore.session.get_session()
    core.register_component("data_loader", _loader())
    return boto3.session.Session(botocore_session=core)


@functools.cache
def _session():
    return session()


def client(service="sqs"):
    return _session().client(
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
        boto3.DEFAULT_SESSION = session()
        self.addCleanup(setattr, boto3, "DEFAULT_SESSION", None)
        self.sqs = client()
        self.addCleanup(self.sqs.close)

    def create_queue(self, visibility=30, max_receive_count=None, **attributes):
        """The URL of a new queue, deleted after the test; with max_receive_count also a dead-letter queue."""
        attributes["VisibilityTimeout"] = str(visibility)
        if max_receive_count is not None:
            kind = {"FifoQueue": "true"} if attributes.get("FifoQueue") == "true" else {}
            dead_letters = self.create_queue(**kind)
            arn = self.sqs.get_queue_attributes(QueueUrl=dead_letters, AttributeNames=["QueueArn"])
            attributes["RedrivePolicy"] = json.dumps(
                {"deadLetterTargetArn": arn["Attributes"]["QueueArn"], "maxReceiveCount": str(max_receive_count)}
            )
            self.dead_letters = dead_letters
        name = f"test-{uuid.uuid4().hex}" + (".fifo" if attributes.get("FifoQueue") == "true" else "")
        url = self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        self.addCleanup(self._delete_queue, url)
        return url

    def _delete_queue(self, url):
        try:
            self.sqs.delete_queue(QueueUrl=url)
        except ClientError as error:
            # The test itself may have deleted it.
            if not error.response["Error"]["Code"].endswith(("QueueDoesNotExist", "NonExistentQueue")):
                raise

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


# The beginning of a script, which imports nothing of the tests: their guard would end what it leaves behind.
STARTS_A_DAEMON = """
import os, signal

def start_a_daemon():
    inlet, outlet = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(outlet, b"%d" % os.getpid())
            signal.pause()
        os._exit(0)
    return int(os.read(inlet, 20))
"""


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
        return whole_lines(self.output)

    def wait_for(self, text, seconds=DEADLINE_SECONDS):
        """The first line with the text in it, when it has come."""

        def found():
            ended = self.process.poll() is not None  # asked first: what it printed last is in the file then
            line = next((line for line in self.lines() if text in line), None)
            if line is None and ended:
                raise AssertionError(f"ended with {self.process.returncode} before it printed {text!r}")
            return line

        try:
            return wait_until(found, f"the script prints {text!r}", seconds)
        except AssertionError as error:
            with open(self.output, errors="replace") as output:
                raise AssertionError(f"{error}; it printed:\n{output.read()}") from None

    def end(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)
