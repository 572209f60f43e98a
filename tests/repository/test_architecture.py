"""Holds the package to the drawing in ARCHITECTURE.rst: which room knows which, and who alone may name what."""

import graphlib
import importlib
import json
import pathlib
import subprocess
import sys
import unittest

import sqstaskmaster
from tests.repository import rooms

DRAWING = pathlib.Path(__file__).resolve().parents[2] / "ARCHITECTURE.rst"

# What is on the left is named by the modules, or the rooms, on the right only.
NAMED_BY = {
    "boto3": {"task_manager", "queue_scale"},
    "signal.signal": {"_signals"},
    "signal.setitimer": {"_signals"},
    **dict.fromkeys(("os.fork", "os.posix_spawn", "os.killpg", "multiprocessing"), {"_isolation"}),
    # The service starts and stops whole workers, the command line its demo.
    **dict.fromkeys(
        ("os.kill", "signal.pidfd_send_signal", "subprocess"),
        {"_isolation", "_service.supervisor", "_cli.worker_process", "_cli.demo.screen"},
    ),
    # A slot's tasks have an environment of their own.
    **dict.fromkeys(
        ("os.environ", "os.getenv", "os.putenv"), {"_cli", "_isolation.slot_keeper", "_isolation.spoiling"}
    ),
    # A log call of ours never raises.
    "logging.getLogger": {"_logging", "_cli"},
    **dict.fromkeys(("logging.basicConfig", "logging.config", ".addHandler", ".setLevel"), {"_cli"}),
}

# The child must start fast, and never touch the worker's sockets or receipts.
STANDARD_LIBRARY_ONLY = {"_isolation", "_signals"}


class ArchitectureTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.modules = rooms.sources()
        walked = {module: rooms.walk(path) for module, path in cls.modules.items()}
        cls.imports = {module: imported for module, (imported, _) in walked.items()}
        cls.uses = {module: imported | used for module, (imported, used) in walked.items()}
        ours = {
            module: {name for name in imported if name.split(".")[0] == "sqstaskmaster"}
            for module, imported in cls.imports.items()
        }
        cls.edges = {
            module: {rooms.module_of(name, cls.modules) for name in names} - {module} for module, names in ours.items()
        }
        cls.rooms = {}
        for module, known in cls.edges.items():
            room = rooms.room_of(module)
            cls.rooms.setdefault(room, set()).update(set(map(rooms.room_of, known)) - {room})

    def test_the_walk_sees_what_is_there(self):
        """So that the laws below cannot hold for want of anything to look at."""
        self.assertLessEqual({"_block", "_claim", "_signals", "_sqs"}, self.rooms["message_handler"])
        self.assertIn("boto3", self.uses["task_manager"])
        self.assertLessEqual({"signal.signal", "signal.setitimer"}, self.uses["_signals.alarm"])

    @unittest.skipUnless(DRAWING.exists(), "ARCHITECTURE.rst is in the repository only")
    def test_the_rooms_know_whom_the_drawing_says_and_nobody_else(self):
        drawing = rooms.drawn(DRAWING.read_text())
        self.assertEqual(set(self.rooms), set(drawing), "the rooms that are there, and those that are drawn")
        for room, known in self.rooms.items():
            with self.subTest(room):
                self.assertEqual(known, drawing[room], f"whom {room} knows, and whom the drawing lets it know")

    @unittest.skipUnless(DRAWING.exists(), "ARCHITECTURE.rst is in the repository only")
    def test_the_drawing_goes_from_the_top_down(self):
        order = list(rooms.drawn(DRAWING.read_text()).items())
        for place, (room, known) in enumerate(order):
            below = {other for other, _ in order[place + 1 :]}
            self.assertLessEqual(known, below, f"{room} may know rooms below it only")

    def test_no_import_goes_round_in_a_circle(self):
        """Not between rooms, nor between modules, nor by what is imported for type checkers only."""
        for what, known in (("rooms", self.rooms), ("modules", self.edges)):
            with self.subTest(what):
                try:
                    graphlib.TopologicalSorter(known).prepare()
                except graphlib.CycleError as error:
                    self.fail(" <- ".join(error.args[1]))

    def test_every_room_says_what_belongs_in_it(self):
        for module, path in self.modules.items():
            if path.name == "__init__.py" and module != "__init__":
                with self.subTest(module):
                    self.assertRegex(path.read_text(), '^"""')

    def test_nobody_names_what_only_others_may(self):
        for name, friends in NAMED_BY.items():
            namers = {module for module, used in self.uses.items() if any(f"{n}.".startswith(f"{name}.") for n in used)}
            strangers = {m for m in namers if not any(f"{m}.".startswith(f"{friend}.") for friend in friends)}
            self.assertEqual(set(), strangers, f"they name {name}")

    def test_no_class_has_more_than_25_methods(self):
        for folder in (rooms.PACKAGE, DRAWING.parent / "benchmarks"):
            for (file, name), methods in rooms.classes(folder).items():
                self.assertLessEqual(len(methods), 25, f"{name} in {file}: give what belongs together its own object")

    def test_nobody_knows_what_is_for_tests(self):
        self.assertEqual(set(), {room for room, known in self.rooms.items() if "testing" in known})
        self.assertEqual({"local", "testing"}, {room for room, known in self.rooms.items() if "_memory" in known})

    def test_isolation_comes_down_to_the_standard_library(self):
        for module, imported in self.imports.items():
            if rooms.room_of(module) in STANDARD_LIBRARY_ONLY:
                outside = {name.split(".")[0] for name in imported} - {"sqstaskmaster"}
                self.assertLessEqual(outside, sys.stdlib_module_names, module)


class PackageTest(unittest.TestCase):
    def loaded_after(self, code):
        script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
        return set(json.loads(subprocess.check_output([sys.executable, "-c", script], cwd=rooms.PACKAGE.parent)))

    def test_importing_the_package_loads_neither_boto3_nor_botocore(self):
        for code in (
            "import sqstaskmaster",
            "from sqstaskmaster import LocalQueue",
            "import sqstaskmaster.task_manager",
        ):
            with self.subTest(code=code):
                loaded = self.loaded_after(code)
                self.assertIn("sqstaskmaster", loaded)
                self.assertEqual(set(), {"boto3", "botocore"} & loaded)

    def test_a_task_manager_of_a_local_queue_needs_no_boto3(self):
        code = (
            "from sqstaskmaster import LocalQueue, TaskManager\nTaskManager('local', None, LocalQueue).submit('Task')"
        )
        self.assertEqual(set(), {"boto3", "botocore"} & self.loaded_after(code))

    def test_every_public_name_resolves_and_is_listed(self):
        for name in sqstaskmaster.__all__:
            with self.subTest(name):
                self.assertIsNotNone(getattr(sqstaskmaster, name))
                self.assertIn(name, dir(sqstaskmaster))
        self.assertLessEqual({"TaskManager", "MessageHandler", "LocalQueue"}, set(sqstaskmaster.__all__))

    def test_a_name_that_is_not_there_is_an_attribute_error(self):
        with self.assertRaisesRegex(AttributeError, "module 'sqstaskmaster' has no attribute 'Nothing'"):
            sqstaskmaster.Nothing

    def test_the_classic_module_paths_hold_the_classic_names(self):
        classic = {
            "task_manager": ["TaskManager"],
            "message_handler": ["MessageHandler"],
            "local": ["LocalQueue", "LocalMessage"],
            "queue_scale": ["Provisioner", "ServiceState"],
        }
        for module, names in classic.items():
            for name in names:
                home = importlib.import_module(f"sqstaskmaster.{module}")
                self.assertIs(getattr(home, name), getattr(sqstaskmaster, name))

    def test_the_package_says_that_it_is_typed(self):
        self.assertTrue((rooms.PACKAGE / "py.typed").is_file())


if __name__ == "__main__":
    unittest.main()
