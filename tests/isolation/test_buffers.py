"""What a task has buffered is written when it ends, as a program's is; what was buffered before it, only once."""

import contextlib
import ctypes
import glob
import gzip
import io
import logging
import logging.handlers
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
import zipfile
from unittest import mock

from sqstaskmaster._isolation import buffers
from tests.isolation.test_task import Case
from tests.support import wait_until

SOON_SECONDS = 20

# What the task's own code keeps open.
kept = []

# A module as users write it, and what forks its tasks: a keeper for each, or a template with a slot.
SERVICE = """
import csv, ctypes, gzip, logging, logging.handlers, os, select, sys
from sqstaskmaster._isolation import child as isolation, template

logging.basicConfig(filename="log", level="INFO", format="%(message)s")
memory = logging.handlers.MemoryHandler(1000, target=logging.getLogger().handlers[0])
buffered = logging.getLogger("buffered")
buffered.addHandler(memory)
buffered.propagate = False
c = ctypes.CDLL(None)

table = csv.writer(open("table", "w"))
text = open("text", "w")
table.writerow(["import"])
text.write("import\\n")
buffered.info("import")
c.printf(b"import\\n")

def task(*_):
    table.writerow(["task"])
    text.write("task\\n")
    buffered.info("task")
    c.printf(b"task\\n")
    zipped = globals()["zipped"] = gzip.open("zipped", "at")
    zipped.write("task\\n")

def by_keepers():
    for _ in range(2):
        child = isolation.Child(task, name="T")
        child.start()
        while not child.wait(1):
            pass
        child.result()
        child.close()

def by_slot():
    made = template.Template(task)
    made.start()
    slot = made.open_slot({})
    for _ in range(2):
        running = slot.start(b"", name="T")
        while not running.gone:
            events = select.poll()
            for descriptor in running.descriptors():
                events.register(descriptor, select.POLLIN)
            for descriptor, _ in events.poll(100):
                running.read(descriptor)
            running.step()
        running.result()
    slot.close()
    made.close()

if __name__ == "__main__":
    globals()[sys.argv[1]]()
"""


class ProgramTest(unittest.TestCase):
    def test_all_is_written_once_however_the_task_is_started(self):
        for how in ("by_keepers", "by_slot"):
            with self.subTest(how), tempfile.TemporaryDirectory() as folder:
                script = pathlib.Path(folder, "service.py")
                script.write_text(SERVICE)
                environment = {**os.environ, "PYTHONPATH": os.getcwd()}
                printed = subprocess.run(
                    [sys.executable, script, how], cwd=folder, env=environment, stdout=-1, timeout=60, check=True
                ).stdout
                expected = ["import", "task", "task"]
                self.assertEqual(expected, printed.decode().split())
                for name in ("table", "text", "log"):
                    self.assertEqual(expected, pathlib.Path(folder, name).read_text().split(), name)
                with gzip.open(pathlib.Path(folder, "zipped"), "rt") as zipped:
                    self.assertEqual(["task", "task"], zipped.read().split())


class BuffersTest(Case):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_a_zip_file_that_a_task_keeps_open_is_whole(self):
        def task(channel):
            archive = zipfile.ZipFile(self.folder / "zip", "w")
            archive.writestr("name", "content")
            kept.append(archive)

        self.finish(task).result()
        self.assertEqual(b"content", zipfile.ZipFile(self.folder / "zip").read("name"))

    def test_a_task_that_fails_or_is_stopped_writes_what_it_has_buffered(self):
        def failing(channel):
            kept.append(open(self.folder / "failing", "w"))
            kept[-1].write("content")
            raise ValueError

        def hanging(channel):
            kept.append(open(self.folder / "hanging", "w"))
            kept[-1].write("content")
            channel.report({"ready": True})
            signal.pause()

        self.finish(failing)
        child = self.start(hanging)
        self.attend_until(child, lambda: child.progress)
        child.stop()
        wait_until(lambda: child.wait(0.5), "it is gone", SOON_SECONDS)
        for name in ("failing", "hanging"):
            self.assertEqual("content", (self.folder / name).read_text())

    def test_pipes_sockets_and_memory_are_left_alone(self):
        def task(channel):
            _, outlet = os.pipe()
            kept.append(io.StringIO())
            kept.append(open(outlet, "w"))
            kept[-1].write("content")
            buffers.write_all()
            return [one.closed for one in kept]

        self.assertEqual([False, False], self.finish(task).result())

    @unittest.skipUnless(os.path.exists("/dev/full"), "there is no /dev/full")
    def test_a_full_disk_fails_the_task(self):
        def task(channel):
            kept.append(open("/dev/full", "w"))
            kept[-1].write("content")

        with mock.patch("stat.S_ISREG", return_value=True), self.assertRaisesRegex(OSError, "No space left"):
            self.finish(task).result()

    def test_what_hangs_is_given_up(self):
        class Handler(logging.Handler):
            def flush(self):
                threading.Event().wait()

        def task(channel):
            kept.append(Handler())
            return "done"

        with mock.patch.object(buffers, "_SECONDS", 0.1):
            self.assertEqual("done", self.finish(task).result())

    def test_with_a_million_objects_nothing_is_looked_for(self):
        def task(channel):
            kept.append(open(self.folder / "name", "w"))
            kept[-1].write("content")

        with mock.patch.object(buffers, "_MOST_OBJECTS", 10):
            self.finish(task).result()
        self.assertEqual("", (self.folder / "name").read_text())

    def test_an_object_that_runs_code_when_asked_for_its_class_is_not_asked(self):
        class Proxy:
            @property
            def __class__(self):
                os._exit(3)

        def task(channel):
            kept.append(Proxy())
            return "done"

        self.assertEqual("done", self.finish(task).result())

    def test_processes_of_a_task_write_into_queues_of_multiprocessing(self):
        def task(channel):
            import multiprocessing

            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            queue.put("x" * 1000)
            reader = context.Process(target=lambda: os._exit(queue.get() != "x" * 1000), daemon=False)
            reader.start()
            kept.append(queue)
            return "done"

        self.assertEqual("done", self.finish(task).result())

    def test_no_temporary_folder_of_multiprocessing_is_left(self):
        def ending(channel):
            import multiprocessing.util

            # One of its own, as in a worker that has none: this process may have made one for another test.
            multiprocessing.current_process()._config.pop("tempdir", None)
            return multiprocessing.util.get_temp_dir()

        def failing(channel):
            raise ValueError(ending(channel))

        with mock.patch.object(tempfile, "tempdir", str(self.folder)):
            self.assertIn(str(self.folder), self.finish(ending).result())
            with contextlib.suppress(ValueError):
                self.finish(failing).result()
        self.assertEqual([], glob.glob(f"{self.folder}/pymp-*"))


class QueuedLogTest(Case):
    def setUp(self):
        super().setUp()
        logging.disable(logging.NOTSET)
        import queue

        self.queue = queue.SimpleQueue()
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.file = logging.FileHandler(os.path.join(self.folder.name, "log"))
        self.addCleanup(self.file.close)
        self.logger = logging.getLogger("tests.queued")
        self.logger.propagate = False
        self.handler = logging.handlers.QueueHandler(self.queue)
        self.logger.addHandler(self.handler)
        self.addCleanup(self.logger.removeHandler, self.handler)
        self.addCleanup(setattr, buffers._inherited, "modules", 0)
        buffers._inherited.modules = 0

    def test_what_a_task_logs_for_a_queue_listener_is_written_by_the_task(self):
        listener = logging.handlers.QueueListener(self.queue, self.file)
        listener.start()
        self.addCleanup(listener.stop)
        self.finish(lambda channel: self.logger.warning("of the task")).result()
        self.assertEqual("of the task\n", pathlib.Path(self.file.baseFilename).read_text())
        self.assertEqual([], buffers.unread_queues())

    def test_a_queue_that_nobody_reads_is_known(self):
        buffers.before_fork()
        self.assertEqual([self.handler], buffers.unread_queues())


class CTest(unittest.TestCase):
    def test_the_streams_of_c_are_found(self):
        name = "stdout" if sys.platform == "linux" else "__stdoutp"
        self.assertTrue(ctypes.c_void_p.in_dll(buffers._c(), name))


if __name__ == "__main__":
    unittest.main()
