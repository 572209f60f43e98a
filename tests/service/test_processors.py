"""What `slots="auto"` counts."""

import http.server
import os
import tempfile
import threading
import unittest
from pathlib import Path

from sqstaskmaster._service import processors


class ProcessorsTest(unittest.TestCase):
    def folder(self, **files):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for name, content in files.items():
            path = Path(folder.name, name.replace("__", "/").replace("_dot_", "."))
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        return Path(folder.name)

    def metadata(self, answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/v4/abc/task" else 404)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.addCleanup(server.server_close)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        return f"http://127.0.0.1:{server.server_port}/v4/abc"

    def test_without_limits_it_is_the_affinity(self):
        self.assertEqual(len(os.sched_getaffinity(0)), processors.available(cgroup=self.folder()))
        self.assertEqual(
            len(os.sched_getaffinity(0)), processors.available(cgroup=self.folder(cpu_dot_max="max 100000\n"))
        )

    def test_a_quota_counts_in_whole_processors_and_is_at_least_one(self):
        self.assertEqual(1, processors.available(cgroup=self.folder(cpu_dot_max="100000 100000\n")))
        self.assertEqual(1, processors.available(cgroup=self.folder(cpu_dot_max="25000 100000\n")))
        self.assertEqual(2.5, processors._of_cgroup(self.folder(cpu_dot_max="250000 100000\n")))

    def test_the_older_cgroups_count_too(self):
        older = {"cpu__cpu_dot_cfs_quota_us": "150000\n", "cpu__cpu_dot_cfs_period_us": "100000\n"}
        self.assertEqual(1.5, processors._of_cgroup(self.folder(**older)))
        self.assertIsNone(processors._of_cgroup(self.folder(**{**older, "cpu__cpu_dot_cfs_quota_us": "-1\n"})))

    def test_the_limit_of_the_ecs_task_counts(self):
        uri = self.metadata(b'{"Limits": {"CPU": 1, "Memory": 2048}}')
        self.assertEqual(1, processors.available(uri, self.folder()))

    def test_an_agent_that_knows_nothing_or_is_not_there_is_passed_over(self):
        everything = processors.available(cgroup=self.folder())
        for uri in (self.metadata(b"{}"), self.metadata(b"no json"), "http://127.0.0.1:9/v4"):
            self.assertEqual(everything, processors.available(uri, self.folder()))


if __name__ == "__main__":
    unittest.main()
