"""Scale-in protection, against an agent that speaks HTTP."""

import http.server
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import unittest
from unittest import mock

from sqstaskmaster import LocalQueue, MessageHandler, TaskManager, Worker
from sqstaskmaster._service.ecs import ScaleInProtection
from tests.support import DEADLINE_SECONDS, Script, ServerTestCase, free_port, wait_until

ON, OFF = True, False


class Agent:
    """What stands at ECS_AGENT_URI: an HTTP server that notes what it was asked."""

    def __init__(self, test):
        self.asked = []
        self.status, self.answer = 200, {"protection": {}}
        self.hold = threading.Event()
        self.hold.set()
        self.drips = False
        agent = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self):
                state = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                agent.asked.append((self.path, self.headers["Content-Type"], state))
                if agent.drips:
                    self.drip()
                agent.hold.wait(DEADLINE_SECONDS)
                body = json.dumps(agent.answer).encode()
                self.send_response(agent.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def drip(self):
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
                while not agent.hold.wait(0.02):
                    self.wfile.write(b".")

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # whoever asked has given up
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for clean_up in (server.server_close, thread.join, server.shutdown, self.hold.set):
            test.addCleanup(clean_up)
        self.uri = f"http://127.0.0.1:{server.server_port}/api/abc"

    def states(self):
        return [state["ProtectionEnabled"] for _, _, state in self.asked]


class ScaleInProtectionTest(unittest.TestCase):
    def setUp(self):
        self.agent = Agent(self)
        self.now = 1000.0

    def protection(self, call_seconds=DEADLINE_SECONDS, **settings):
        protection = ScaleInProtection(self.agent.uri, clock=lambda: self.now, call_seconds=call_seconds, **settings)
        protection.__enter__()
        self.addCleanup(protection.__exit__)
        self.settle(protection)
        self.agent.asked.clear()
        return protection

    def settle(self, protection):
        """Until what was wanted last has been told to the agent."""
        self.assertTrue(protection._teller.wait(DEADLINE_SECONDS))

    def busy(self, protection, seconds):
        protection.busy(seconds)
        self.settle(protection)

    def idle(self, protection):
        protection.idle()
        self.settle(protection)

    def test_it_is_asked_for_until_after_the_work_can_have_ended(self):
        self.busy(self.protection(), 3600)
        (request,) = self.agent.asked
        state = {"ProtectionEnabled": True, "ExpiresInMinutes": 65}
        self.assertEqual(("/api/abc/task-protection/v1/state", "application/json", state), request)

    def test_the_longest_task_there_is_stays_within_what_ecs_allows(self):
        self.busy(self.protection(), 43200)
        self.assertTrue(720 < self.agent.asked[0][2]["ExpiresInMinutes"] <= 2880)

    def test_only_the_change_between_idle_and_busy_costs_a_request(self):
        protection = self.protection()
        for _ in range(5):
            self.busy(protection, 60)
        self.idle(protection)
        self.idle(protection)
        self.busy(protection, 60)
        self.assertEqual([ON, OFF, ON], self.agent.states())

    def test_it_is_renewed_before_it_can_expire_in_a_later_task(self):
        protection = self.protection()
        self.busy(protection, 600)
        self.now += 300  # 15 minutes were asked for
        self.busy(protection, 600)
        self.now += 1
        self.busy(protection, 600)
        self.assertEqual([ON, ON], self.agent.states())

    def test_one_that_was_left_by_a_killed_worker_is_returned_on_starting(self):
        with ScaleInProtection(self.agent.uri) as protection:
            self.settle(protection)
            self.assertEqual([OFF], self.agent.states())

    def test_it_is_not_returned_while_another_process_of_the_container_is_busy(self):
        file = tempfile.TemporaryFile()
        self.addCleanup(file.close)
        protection = self.protection(lock=file.fileno())
        other = self.other_process(file)
        self.busy(protection, 60)
        self.idle(protection)
        self.assertEqual([ON], self.agent.states())
        other.kill()  # the kernel releases its lock
        other.wait(DEADLINE_SECONDS)
        self.busy(protection, 60)
        self.idle(protection)
        self.assertEqual([ON, ON, OFF], self.agent.states())

    def test_what_a_task_forks_does_not_hold_the_protection_of_its_worker(self):
        file = tempfile.TemporaryFile()
        self.addCleanup(file.close)
        protection = self.protection(lock=file.fileno())
        # Its parent took the lock, and was killed; the descriptor is still open here.
        self.other_process(file, "if os.fork(): os._exit(0)").wait(DEADLINE_SECONDS)
        self.busy(protection, 60)
        self.idle(protection)
        self.assertEqual([ON, OFF], self.agent.states())

    def other_process(self, file, more="pass"):
        """Another process of the container, which has the file of the lock from the same supervisor, and is busy."""
        code = f"import fcntl, os, sys\nfcntl.lockf(int(sys.argv[1]), fcntl.LOCK_SH)\n{more}\n"
        code += "print('holds', flush=True); sys.stdin.read()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(file.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[file.fileno()],
        )
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait, DEADLINE_SECONDS)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdin.close)
        self.assertEqual(b"holds\n", process.stdout.readline())
        return process

    def test_what_fails_is_a_warning_and_tried_again_with_the_next_task(self):
        protection = self.protection()
        self.agent.status = 500
        with self.assertLogs("sqstaskmaster._service.ecs", logging.WARNING):
            self.busy(protection, 60)
        self.agent.status, self.agent.answer = 200, {"failure": {"Reason": "TASK_NOT_VALID"}}
        with self.assertLogs("sqstaskmaster._service.ecs", logging.WARNING) as logs:
            self.busy(protection, 60)
        self.assertIn("TASK_NOT_VALID", logs.output[0])
        self.agent.answer = {}
        with self.assertNoLogs("sqstaskmaster._service.ecs"):
            self.busy(protection, 60)
        self.assertEqual([ON, ON, ON], self.agent.states())

    def test_work_does_not_wait_for_an_agent_that_does_not_answer(self):
        protection = self.protection(call_seconds=20)
        self.agent.hold.clear()
        for _ in range(100):
            protection.busy(60)
            protection.idle()
        self.assertLessEqual(len(self.agent.states()), 1)
        self.agent.hold.set()
        self.settle(protection)
        self.assertEqual(OFF, self.agent.states()[-1], "what is wanted last is asked for last")
        self.assertLess(len(self.agent.states()), 5)

    def test_an_agent_that_does_not_answer_is_a_warning(self):
        protection = self.protection(call_seconds=0.1)
        self.agent.hold.clear()
        for self.agent.drips in (False, True):
            with self.subTest(drips=self.agent.drips), self.assertLogs("sqstaskmaster._service.ecs", logging.WARNING):
                self.busy(protection, 60)

    def test_an_agent_that_is_not_there_is_a_warning(self):
        with self.assertLogs("sqstaskmaster._service.ecs", logging.WARNING):
            with ScaleInProtection(f"http://127.0.0.1:{free_port()}"):
                pass

    def test_no_proxy_stands_between(self):
        with mock.patch.dict(os.environ, {"http_proxy": f"http://127.0.0.1:{free_port()}", "no_proxy": ""}):
            self.busy(self.protection(), 60)
        self.assertEqual([ON], self.agent.states())

    def test_away_from_ecs_nothing_is_done(self):
        with mock.patch("sqstaskmaster._service.ecs.BoundedCall", side_effect=AssertionError("a request")):
            with ScaleInProtection(None) as protection:
                protection.busy(60)
                protection.idle()


class WorkerOnEcsTest(unittest.TestCase):
    def test_a_worker_is_protected_from_its_first_task_to_the_empty_poll(self):
        agent = Agent(self)

        class Look(MessageHandler):
            def run(self):
                wait_until(lambda: agent.states()[-1:] == [ON], "the agent has been asked")

        manager = TaskManager("ecs-test", queue_constructor=LocalQueue)
        for _ in range(3):
            manager.submit("Look")
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        counts = Worker(manager, {"Look": Look}, wait_time=0).run(burst=True, ecs_agent_uri=agent.uri)
        self.assertEqual({"done": 3}, counts)
        self.assertEqual([ON, OFF], agent.states()[-2:])
        self.assertEqual(1, agent.states().count(ON))


ON_ECS = """
import json, logging, os, sys, threading

from sqstaskmaster import LocalQueue, MessageHandler, ProcessMessageHandler, TaskManager, Worker


def connected_to():
    "The ports that the sockets among this process's descriptors are connected to."
    ports = {}
    with open("/proc/self/net/tcp") as table:
        for line in list(table)[1:]:
            fields = line.split()
            ports[fields[9]] = int(fields[2].partition(":")[2], 16)
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            kind, _, inode = os.readlink(f"/proc/self/fd/{name}").partition(":")
        except FileNotFoundError:
            continue
        if kind == "socket":
            found.append(ports.get(inode.strip("[]")))
    return [port for port in found if port]


class Task(ProcessMessageHandler):
    def __init__(self, message, method, sqs_timeout, alarm_timeout, hard_timeout):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout, start_method=method)

    def run(self):
        print("ports " + json.dumps(connected_to()), flush=True)


class Plain(MessageHandler):
    def run(self):
        pass


if __name__ == "__main__":
    uri, kind, method = sys.argv[1:]
    logging.basicConfig(stream=sys.stdout, level="WARNING")
    manager = TaskManager("memory:ecs", queue_constructor=LocalQueue)
    handlers = {"Task": Task, "Plain": Plain} if kind == "worker" else {"Task": Task}
    for number in range(2):
        manager.submit("Task", method=None if method == "None" else method)
        # What is told of the first task hangs, and its thread outlives the first worker.
        on_finish = (lambda _: threading.Event().wait(60)) if kind == "hangs" and not number else None
        counts = Worker(manager, handlers, wait_time=0, on_finish=on_finish).run(burst=True, ecs_agent_uri=uri or None)
        print(f"run {number} ended {dict(counts)}", flush=True)
"""


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class OnEcsTest(ServerTestCase):
    """Whatever forks tasks is forked before any thread or socket of the worker's exists, in a second worker too."""

    def runs(self, kind, method=None):
        agent = Agent(self)
        agent.hold.clear()  # the agent is asked, and is slow to answer
        script = Script(self, ON_ECS, agent.uri, kind, method)
        for number in range(2):
            self.assertIn("{'done': 1}", script.wait_for(f"run {number} ended"))
        self.assertEqual(0, script.process.wait(DEADLINE_SECONDS))
        lines = script.lines()
        self.assertTrue(agent.asked)
        with self.subTest("no thread is said to be the user's"):
            self.assertEqual([], [line for line in lines if "started threads" in line])
        with self.subTest("no socket of the agent is among a task's descriptors"):
            ports = [json.loads(line.partition(" ")[2]) for line in lines if line.startswith("ports ")]
            self.assertEqual([[], []], ports)

    def test_away_from_ecs_a_second_worker_does_not_report_the_threads_of_the_first(self):
        script = Script(self, ON_ECS, "", "hangs", None)
        self.assertIn("{'done': 1}", script.wait_for("run 1 ended"))
        self.assertEqual(0, script.process.wait(DEADLINE_SECONDS))
        self.assertEqual([], [line for line in script.lines() if "started threads" in line])

    def test_a_task_in_a_slot_has_neither_thread_nor_socket_of_its_worker(self):
        self.runs("slots")

    def test_a_task_in_a_spawned_slot_has_neither_thread_nor_socket_of_its_worker(self):
        self.runs("slots", "spawn")

    def test_a_task_beside_plain_handlers_has_neither_thread_nor_socket_of_its_worker(self):
        self.runs("worker")


if __name__ == "__main__":
    unittest.main()
