"""Under gevent's monkey patch, where a thread is a greenlet of the main thread."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.support import ENVIRONMENT
from tests.support.extras import need

SENDS = """
from gevent import monkey
monkey.patch_all()
import signal
from sqstaskmaster import LocalQueue, TaskManager
from sqstaskmaster._signals.bounded import BoundedCall

manager = TaskManager("local", queue_constructor=LocalQueue)
manager.submit("T")
assert manager.submit_many([("T", {"n": n}) for n in range(100)]).sent == 100
call = BoundedCall(lambda: None)
assert call.wait(30)
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""

SERVICE = """
from gevent import monkey
monkey.patch_all()
from sqstaskmaster import TaskManager, Worker

worker = Worker(TaskManager("http://127.0.0.1:1/1/tasks"))

@worker.task("T")
def task():
    import boto3
    boto3.client("sqs", region_name="eu-west-1")
    print("done")
"""


class GeventTest(unittest.TestCase):
    def setUp(self):
        need("gevent", "recipes")

    def test_no_signal_stays_blocked_in_the_main_thread(self):
        printed = subprocess.run([sys.executable, "-c", SENDS], stdout=-1, timeout=60, check=True).stdout
        self.assertEqual("set()", printed.decode().strip())

    def test_a_module_that_patches_is_imported_before_what_it_patches_is_used(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "service.py").write_text(SERVICE)
            command = [sys.executable, "-m", "sqstaskmaster", "run", "service:worker", "T"]
            environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.getcwd()}
            ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60)
            self.assertEqual((0, b"done\n"), (ended.returncode, ended.stdout), ended.stderr.decode())


class ImportsTest(unittest.TestCase):
    def test_the_commands_that_import_a_module_have_not_imported_botocore_before_it(self):
        for name in ("run", "worker_process"):
            with self.subTest(name):
                program = f"import sys, sqstaskmaster._cli.{name}; sys.exit('botocore' in sys.modules)"
                subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


if __name__ == "__main__":
    unittest.main()
