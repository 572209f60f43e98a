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
            path.parent.mkdir(exist_ok=True, parents=True)
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
        self.assertEqual(2.5, self.quota(self.folder(cpu_dot_max="250000 100000\n")))

    def test_the_older_cgroups_count_too(self):
        older = {"cpu__cpu_dot_cfs_quota_us": "150000\n", "cpu__cpu_dot_cfs_period_us": "100000\n"}
        self.assertEqual(1.5, self.quota(self.folder(**older)))
        self.assertIsNone(self.quota(self.folder(**{**older, "cpu__cpu_dot_cfs_quota_us": "-1\n"})))

    def quota(self, root, own=""):
        return processors._of_cgroups(root, Path(self.folder(cgroup=own), "cgroup"))

    def test_a_services_own_group_and_all_above_it_count_and_the_least_is_what_there_is(self):
        for own, above, expected in (("150000", "max", 1.5), ("max", "250000", 2.5), ("300000", "250000", 2.5)):
            files = {
                "cpu_dot_max": "max 100000\n",
                "system_dot_slice__cpu_dot_max": f"{above} 100000\n",
                "system_dot_slice__w_dot_service__cpu_dot_max": f"{own} 100000\n",
            }
            with self.subTest(own=own, above=above):
                found = self.quota(self.folder(**files), "0::/system.slice/w.service\n")
                self.assertEqual(expected, found)

    def test_the_older_groups_have_a_path_for_each_controller(self):
        files = {
            "cpu__docker__a__cpu_dot_cfs_quota_us": "150000\n",
            "cpu__docker__a__cpu_dot_cfs_period_us": "100000\n",
        }
        own = "5:memory:/other\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/b\n"
        self.assertEqual(1.5, self.quota(self.folder(**files), own))
        # Of a namespace's outside, and of a file that makes no sense, the root is left.
        for own in ("4:cpu:/../../docker\n", "nonsense\n"):
            self.assertIsNone(self.quota(self.folder(**files), own))

    def test_the_limit_of_the_ecs_task_counts(self):
        uri = self.metadata(b'{"Limits": {"CPU": 1, "Memory": 2048}}')
        self.assertEqual(1, processors.available(uri, self.folder()))

    def test_an_agent_that_knows_nothing_or_is_not_there_is_passed_over(self):
        everything = processors.available(cgroup=self.folder())
        for uri in (self.metadata(b"{}"), self.metadata(b"no json"), "http://127.0.0.1:9/v4"):
            self.assertEqual(everything, processors.available(uri, self.folder()))


if __name__ == "__main__":
    unittest.main()
