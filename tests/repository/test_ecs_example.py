"""examples/ecs: what of it can be run without an AWS account is run here."""

import json
import os
import re
import shlex
import subprocess
import tempfile
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import boto3

from sqstaskmaster import Continue, DeadLetter, MessageHandler, ProcessMessageHandler, TaskManager, Worker
from tests.support import DEADLINE_SECONDS, ServerTestCase, wait_until
from tests.support.commands import Command, run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ecs"


def load(name):
    return json.loads((EXAMPLE / name).read_text(encoding="utf-8"))


def actions(policy):
    """The actions that a policy allows. Each of its statements names its resource."""
    found = []
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow" and statement["Resource"] not in ("*", ["*"]), statement
        found += [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
    return sorted(found)


class TestFiles(unittest.TestCase):
    def test_every_json_file_parses(self):
        names = sorted(path.name for path in EXAMPLE.glob("*.json"))
        self.assertEqual(
            ["endings-policy", "producer-policy", "task-definition", "trust-policy", "worker-policy"],
            [n[:-5] for n in names],
        )
        for name in names:
            self.assertTrue(load(name))

    def test_task_definition_and_dockerfile_start_the_same_command(self):
        [container] = load("task-definition.json")["containerDefinitions"]
        dockerfile = (EXAMPLE / "Dockerfile").read_text(encoding="utf-8")
        self.assertEqual(["sqstaskmaster"], json.loads(re.search(r"^ENTRYPOINT (.*)$", dockerfile, re.M)[1]))
        self.assertEqual(container["command"], json.loads(re.search(r"^CMD (.*)$", dockerfile, re.M)[1]))
        self.assertIn(container["healthCheck"]["command"][1], dockerfile)

    def test_ecs_waits_longer_than_the_workers_grace(self):
        [container] = load("task-definition.json")["containerDefinitions"]
        grace = int(re.search(r"shutdown_grace=(\d+)", (EXAMPLE / "tasks.py").read_text(encoding="utf-8"))[1])
        # 20 seconds to stop the task (term_grace is 5) and to give its message back; Fargate allows 120 at most.
        self.assertLessEqual(grace + 20, container["stopTimeout"])
        self.assertLessEqual(container["stopTimeout"], 120)

    def test_the_readme_copies_only_files_that_are_there(self):
        readme = (EXAMPLE / "README.rst").read_text(encoding="utf-8")
        for name in re.findall(r"file://(\S+)", readme):
            self.assertTrue((EXAMPLE / name).exists(), name)


class Agent(BaseHTTPRequestHandler):
    """The agent of ECS, as far as task protection goes."""

    def do_PUT(self):
        self.server.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *arguments):
        pass


class Slow(MessageHandler):
    def run(self):
        time.sleep(0.5)  # long enough for its claim to be extended


class Fails(MessageHandler):
    def run(self):
        raise ValueError("no such model")

    def retry_delay(self, exception, receive_count):
        return 600


class GoesOn(ProcessMessageHandler):
    def __init__(self, message, sqs_timeout, alarm_timeout, hard_timeout, step=0):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout)
        self.step = step

    def run(self):
        if self.step == 0:
            raise Continue(step=1)
        raise DeadLetter("no such model")


class TestPolicies(ServerTestCase):
    """Least privilege: just what the package asks for while it does its work, and nothing else."""

    def setUp(self):
        super().setUp()
        self.url = self.create_queue()
        self.asked = set()
        boto3.setup_default_session()
        boto3.DEFAULT_SESSION.events.register("before-call.sqs", self.record)

    def test_the_policy_of_endings_holds_what_continue_and_dead_letter_need_beside_the_workers(self):
        self.url = self.create_queue(max_receive_count=3)
        asked = set()

        def record(params, model, **_):
            # The query protocol of older botocores has the parameters in the body.
            url = json.loads(params["body"])["QueueUrl"] if isinstance(params["body"], (str, bytes)) else None
            asked.add((model.name, (url or params["body"]["QueueUrl"]).rpartition("/")[2]))

        boto3.DEFAULT_SESSION.events.register("before-call.sqs.SendMessage", record)
        self.sqs.send_message(QueueUrl=self.url, MessageBody=json.dumps({"task": "GoesOn", "kwargs": {}}))
        with self.assertLogs("sqstaskmaster"):
            counts = Worker(TaskManager(self.url), {"GoesOn": GoesOn}, wait_time=0).run(burst=True)
        self.assertEqual({"continued": 1, "dead-lettered": 1}, dict(counts))
        names = {"tasks": self.url.rpartition("/")[2], "tasks-dead": self.dead_letters.rpartition("/")[2]}
        allowed = load("endings-policy.json")["Statement"]
        self.assertEqual(["sqs:SendMessage"] * 2, actions(load("endings-policy.json")))
        queues = {("SendMessage", names[statement["Resource"].rpartition(":")[2]]) for statement in allowed}
        self.assertEqual(queues, asked)
        # Beside these it asks for no more than every worker does.
        self.assertLessEqual(self.asked - {"sqs:SendMessage"}, set(actions(load("worker-policy.json"))))

    def record(self, model, **_):
        # A batch needs the permission of its single request.
        self.asked.add("sqs:" + model.name.removesuffix("Batch"))

    def test_the_producers_policy_holds_the_actions_of_a_producer(self):
        manager = TaskManager(self.url)
        manager.submit("Train", x=1)
        manager.submit_many([("Train", {"x": 2})])
        self.assertEqual(actions(load("producer-policy.json")), sorted(self.asked))

    def test_the_workers_policy_holds_the_actions_of_a_worker(self):
        agent = ThreadingHTTPServer(("127.0.0.1", 0), Agent)
        agent.asked = []
        serving = Thread(target=agent.serve_forever, args=(0.01,))
        serving.start()
        self.addCleanup(serving.join)
        self.addCleanup(agent.server_close)
        self.addCleanup(agent.shutdown)
        for task in ("Slow", "Fails"):
            body = json.dumps({"task": task, "kwargs": {}})
            self.sqs.send_message(QueueUrl=self.url, MessageBody=body)
        manager = TaskManager(self.url)
        worker = Worker(manager, {"Slow": Slow, "Fails": Fails}, sqs_timeout=120, alarm_timeout=0.1, wait_time=0)
        with self.assertLogs("sqstaskmaster"):
            counts = worker.run(burst=True, ecs_agent_uri=f"http://127.0.0.1:{agent.server_port}/api/id")
        self.assertEqual({"done": 1, "failed": 1}, dict(counts))
        manager.attributes()  # as status and doctor do
        self.assertIn(True, [asked.get("ProtectionEnabled") for _, asked in agent.asked])
        # The agent asks ECS for it in the name of the task's role.
        self.assertEqual(actions(load("worker-policy.json")), sorted(self.asked | {"ecs:UpdateTaskProtection"}))


class TestContainer(ServerTestCase):
    """The container without the container: the command of the image, in a folder with its files."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        tasks = (EXAMPLE / "tasks.py").read_text(encoding="utf-8")
        # Only so that the test need not wait for the end of the longest poll.
        tasks = tasks.replace("Worker(", "Worker(wait_time=1, manager=")
        Path(self.folder, "tasks.py").write_text(tasks, encoding="utf-8")
        self.url = self.create_queue()
        self.alive = os.path.join(self.folder, "alive")
        [container] = load("task-definition.json")["containerDefinitions"]
        self.command = [self.alive if word == "/tmp/alive" else word for word in container["command"]]
        self.health_check = container["healthCheck"]["command"][1].replace("/tmp/alive", shlex.quote(self.alive))

    def is_healthy(self):
        return (
            subprocess.run(self.health_check, shell=True, capture_output=True, timeout=DEADLINE_SECONDS).returncode == 0
        )

    def test_it_works_is_healthy_and_stops_on_sigterm(self):
        worker = Command(self, *self.command, cwd=self.folder, QUEUE_URL=self.url)
        self.assertEqual(0, run("submit", self.url, "CountPrimes", "below=1000").returncode)
        worker.wait_for("168 primes below 1000")
        wait_until(self.is_healthy, "the health check succeeds")
        self.assertEqual(0, worker.stop(), worker.lines())
        os.utime(self.alive, (0, 0))  # what it is when nobody has touched it for long
        self.assertFalse(self.is_healthy())
        self.assertEqual((0, 0, 0), self.counts(self.url))
