"""The recipes in examples/hooks, with the real libraries, in workers whose tasks have processes of their own."""

import importlib.util
import json
import logging
import pathlib
import tempfile
import unittest
import urllib.request
import uuid

from sqstaskmaster import LocalQueue, TaskManager, Worker
from tests.repository.test_examples import need
from tests.support import free_port

HOOKS = pathlib.Path(__file__).parents[2] / "examples" / "hooks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"hooks_{name}_{uuid.uuid4().hex}", HOOKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manager(notify=None):
    return TaskManager(f"memory/{uuid.uuid4().hex}", notify, LocalQueue)


def with_tasks(worker):
    @worker.task("Good")
    def good():
        pass

    @worker.task("Bad")
    def bad():
        raise ValueError("no such model")

    @worker.task("Killed", hard_timeout=0.3, term_grace=0)
    def killed():
        import ctypes

        ctypes.PyDLL(None).sleep(3600)

    return worker


@unittest.skipUnless(HOOKS.exists(), "the examples are in the repository only")
class HooksTest(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_the_senders_span_is_the_parent_of_the_tasks_across_the_processes(self):
        need("opentelemetry", "recipes")
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

        tracing = load("tracing")
        with tempfile.NamedTemporaryFile("a+") as spans:
            exporter = ConsoleSpanExporter(out=spans, formatter=lambda span: span.to_json(indent=None) + "\n")
            provider = TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            self.addCleanup(provider.shutdown)
            tracing.tracer = provider.get_tracer("test")
            queue = manager()
            worker = with_tasks(Worker(queue, around=tracing.traced, wait_time=0))
            tracing.submit(queue.options(message_attributes={"tenant": "a"}), "Good")
            tracing.submit(queue, "Bad")
            worker.run(burst=True)
            spans.seek(0)
            found = {span["name"]: span for span in map(json.loads, spans.read().splitlines())}
        self.assertEqual({"send Good", "process Good", "send Bad", "process Bad"}, set(found))
        for name in ("Good", "Bad"):
            sent, processed = found[f"send {name}"], found[f"process {name}"]
            self.assertEqual(sent["context"]["span_id"], processed["parent_id"])
            self.assertEqual(sent["context"]["trace_id"], processed["context"]["trace_id"])
            self.assertEqual(
                sent["attributes"]["messaging.message.id"], processed["attributes"]["messaging.message.id"]
            )
        self.assertEqual("ERROR", found["process Bad"]["status"]["status_code"])

    def test_each_failure_is_one_event_with_the_task_and_where_it_was(self):
        need("sentry_sdk", "recipes")
        import sentry_sdk
        from sentry_sdk.transport import Transport

        logging.disable(logging.NOTSET)  # lines of the log would be events too
        events = []

        class Kept(Transport):
            def capture_envelope(self, envelope):
                events.append(envelope.get_event())

        sentry = load("sentry")
        self.addCleanup(sentry_sdk.init)
        queue = manager(sentry.notify)
        start = lambda: sentry.start("http://key@127.0.0.1:1/1", transport=Kept)  # noqa: E731
        worker = with_tasks(Worker(queue, on_start=start, wait_time=0))
        for name in ("Good", "Bad", "Killed"):
            queue.submit(name)
        with self.assertLogs("sqstaskmaster", "ERROR"):
            worker.run(burst=True)
        self.assertEqual(["Bad", "Killed"], sorted(event["tags"]["task"] for event in events))
        bad, killed = sorted(events, key=lambda event: event["tags"]["task"])
        self.assertIn("no such model", json.dumps(bad["exception"]))
        self.assertIn("in bad", json.dumps(bad["exception"]), "the traceback of the task's process")
        self.assertEqual("timed out", killed["tags"]["outcome"])
        self.assertIn("sleep(3600)", killed["contexts"]["where the task was"]["stack"])
        self.assertNotIn("body", bad["contexts"]["message"])

    def test_tasks_are_counted_by_outcome_once_also_those_that_were_killed(self):
        need("prometheus_client", "recipes")
        import prometheus_client

        before = set(prometheus_client.REGISTRY._collector_to_names)
        metrics = load("metrics")
        for collector in set(prometheus_client.REGISTRY._collector_to_names) - before:
            self.addCleanup(prometheus_client.REGISTRY.unregister, collector)
        port, servers = free_port(), []
        queue = manager()
        worker = with_tasks(
            Worker(queue, on_start=lambda: servers.append(metrics.serve(port)), on_finish=metrics.count, wait_time=0)
        )
        for name in ("Good", "Good", "Bad", "Killed"):
            queue.submit(name)
        worker.run(burst=True)
        ((server, thread),) = servers
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        self.assertIn('tasks_finished_total{outcome="done",task="Good"} 2.0', lines)
        self.assertIn('tasks_finished_total{outcome="failed",task="Bad"} 1.0', lines)
        self.assertIn('tasks_finished_total{outcome="timed out",task="Killed"} 1.0', lines)
        self.assertIn('task_seconds_count{task="Killed"} 1.0', lines)


if __name__ == "__main__":
    unittest.main()
