"""The image of examples/ecs, built by its Dockerfile's own steps, and the worker in it: python -m tests.container

Wants root, podman and debootstrap, but no registry of images: what the Dockerfile begins FROM is made of Debian, from
the mirror of this machine's own apt settings. Packages for it come from this machine's own pip. Where something of that
is not to be had it says so, and exits with 77.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import uuid
from pathlib import Path

from tests import support

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "ecs"
SKIPPED = 77

# What the tests need of tasks, beside those of the example.
TASKS = """

@worker.task("Sleep", term_grace=1)
def sleep():
    import time
    print("sleeping", flush=True)
    time.sleep(3600)


@worker.task("Die")
def die():
    os.kill(os.getpid(), 9)


worker.shutdown_grace = 0
"""


# podman would raise them, which is not allowed where this machine is a container itself.
LIMITS = ("--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000")


def run(*command, stderr=subprocess.PIPE, **options):
    """Its standard output; an error with all that it said where it fails."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=600, **options)
    if ended.returncode:
        raise RuntimeError(f"{command}: exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout.strip()


def lacking():
    """Why the image cannot be built here; "" where it can."""
    if os.geteuid():
        return "it takes root"
    return ", ".join(f"there is no {name}" for name in ("podman", "debootstrap", "apt-get") if not shutil.which(name))


class Podman:
    """With a storage of its own, which is removed at the end."""

    def __init__(self, folder):
        runtime = next((["--runtime", name] for name in ("runc", "crun") if shutil.which(name)), [])
        self._command = [
            *("podman", "--root", f"{folder}/storage", "--runroot", f"{folder}/run", "--cgroup-manager", "cgroupfs"),
            *("--storage-driver", "vfs", *runtime),
        ]

    def __call__(self, *arguments, **options):
        return run(*self._command, *arguments, **options)


def make_base(podman, folder, image):
    """An image with Debian's Python, and with the packages that are to be installed in it; pip asks nobody for them."""
    base = Path(folder, "base")
    sites = run("apt-get", "indextargets", "--format", "$(SITE) $(CODENAME)", "Created-By: Packages").splitlines()
    site, codename = sites[0].split()
    run("debootstrap", "--variant=minbase", "--include=python3-pip", codename, base, site)
    (base / "wheels").mkdir()
    run(sys.executable, "-m", "pip", "wheel", "-q", "-w", base / "wheels", "boto3", cwd=folder)
    run("tar", "-C", base, "-cf", f"{folder}/base.tar", ".")
    shutil.rmtree(base)
    settings = (
        "PIP_BREAK_SYSTEM_PACKAGES=1",
        "PIP_NO_INDEX=1",
        "PIP_FIND_LINKS=/wheels",
        "PIP_ROOT_USER_ACTION=ignore",
    )
    changes = [part for setting in settings for part in ("--change", f"ENV {setting}")]
    podman("import", *changes, f"{folder}/base.tar", image)


def build(podman, folder):
    """The image, by the Dockerfile as it is but for the wheel that is brought into it."""
    context = Path(folder, "context")
    context.mkdir()
    dockerfile = (EXAMPLE / "Dockerfile").read_text()
    make_base(podman, folder, dockerfile.split()[1])
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", context, ROOT)
    [wheel] = context.glob("*.whl")
    (context / "tasks.py").write_text((EXAMPLE / "tasks.py").read_text() + TASKS)
    (context / "Dockerfile").write_text(dockerfile.replace("\nARG ", f"\nCOPY {wheel.name} ./\nARG ", 1))
    given = ("--build-arg", f"SQSTASKMASTER=./{wheel.name}")
    podman("build", "--format", "docker", "--pull=never", "--network", "host", *given, "-t", "worker", context)


class ContainerTest(support.ServerTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        cls.addClassCleanup(folder.cleanup)
        cls.podman = Podman(folder.name)
        cls.addClassCleanup(cls.clean)
        build(cls.podman, folder.name)

    @classmethod
    def clean(cls):
        with contextlib.suppress(RuntimeError):
            cls.podman("rm", "--all", "--force", "--time", "0")
            cls.podman("rmi", "--all", "--force")

    def setUp(self):
        super().setUp()
        self.url = self.create_queue(visibility=600)

    def start(self, *options):
        name = f"worker-{uuid.uuid4().hex}"
        environment = {**support.ENVIRONMENT, "AWS_ENDPOINT_URL": support.endpoint(), "QUEUE_URL": self.url}
        given = [part for key, value in environment.items() for part in ("-e", f"{key}={value}")]
        self.podman("run", "--detach", "--network", "host", *LIMITS, "--name", name, *given, *options, "worker")
        self.addCleanup(self.podman, "rm", "--force", "--time", "0", name)
        support.wait_until(lambda: "started as pid" in self.log(name), "the worker has started")
        return name

    def log(self, name):
        return self.podman("logs", name, stderr=subprocess.STDOUT)

    def submit(self, task, **kwargs):
        self.sqs.send_message(QueueUrl=self.url, MessageBody=json.dumps({"task": task, "kwargs": kwargs}))

    def finished(self, name, outcome="done"):
        return support.wait_until(lambda: f'"outcome": "{outcome}"' in self.log(name), f"a task is {outcome}")

    def stop(self, name):
        """Its exit code, stopped as ECS does."""
        self.podman("stop", "--time", "60", name)
        return int(self.podman("inspect", "--format", "{{.State.ExitCode}}", name))

    def test_a_task_is_done_and_an_idle_worker_ends_on_sigterm(self):
        name = self.start()
        self.submit("CountPrimes", below=100)
        self.finished(name)
        self.podman("healthcheck", "run", name)
        self.assertEqual(0, self.stop(name))

    def test_a_running_task_is_seen_and_given_back_on_sigterm(self):
        name = self.start()
        self.submit("Sleep")
        support.wait_until(lambda: "sleeping" in self.log(name), "the task runs")
        self.assertIn("time.sleep(3600)", self.podman("exec", name, "sqstaskmaster", "ps", "--stacks"))
        self.assertEqual(0, self.stop(name))
        self.assertEqual((1, 0, 0), self.counts(self.url))

    def test_a_task_that_is_killed_has_failed_and_the_next_one_runs(self):
        name = self.start()
        self.submit("Die")
        self.finished(name, "failed")
        self.submit("CountPrimes", below=100)
        self.finished(name)

    def test_it_runs_in_a_hardened_container(self):
        for options in (
            ("--read-only", "--tmpfs", "/tmp"),
            ("--ipc", "none"),  # no /dev/shm
            ("--user", "12345"),  # without an entry in passwd
            ("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        ):
            with self.subTest(options):
                name = self.start(*options)
                self.submit("CountPrimes", below=100)
                self.finished(name)
                self.assertEqual(0, self.stop(name))


if __name__ == "__main__":
    reason = lacking()
    if reason:
        print(f"SKIPPED: the image of examples/ecs is not built: {reason}")
        sys.exit(SKIPPED)
    unittest.main()
