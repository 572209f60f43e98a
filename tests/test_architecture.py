"""Holds the package to its own table of who may not know whom, by walking what each module imports and names."""

import ast
import graphlib
import importlib
import json
import pathlib
import subprocess
import sys
import unittest

import sqstaskmaster

ROOT = pathlib.Path(sqstaskmaster.__file__).parent

# Rooms that belong together. A sub-package is one room.
COMMAND_LINE = {
    "cli",
    "__main__",
    "demo",
    "doctor",
    "exits",
    "logs",
    "operations",
    "supervisor",
    "tables",
    "worker_process",
}
ISOLATION = {"isolation", "keeper", "process_tree", "stacks"}

# Whoever is on the left reaches nobody on the right, neither itself nor through others.
NEVER_REACHES = {
    "message_handler": {"task_manager", "local", "worker"},
    "process_handler": {"task_manager", "local", "worker"},
    "task_manager": {"message_handler", "process_handler", "isolation", "worker"},
}
# Whoever is on the left is imported by those on the right only. The front door (`__init__`) loads by name.
IMPORTED_BY = {
    "cli": {"__main__"},
    "__main__": set(),
    "queue_scale": set(),
    "local": {"demo"},
    "demo": COMMAND_LINE,
    "worker": COMMAND_LINE,
    "__init__": {"demo"},
}
# What is on the left is named by those on the right only.
NAMED_BY = {
    "boto3": {"task_manager", "queue_scale"},
    "signal.signal": {"signals"},
    "signal.setitimer": {"signals"},
    **dict.fromkeys(("os.fork", "os.posix_spawn", "os.killpg", "multiprocessing"), ISOLATION),
    # The command line starts and stops whole workers.
    **dict.fromkeys(("os.kill", "signal.pidfd_send_signal", "subprocess"), ISOLATION | COMMAND_LINE),
    **dict.fromkeys(("os.environ", "os.getenv", "os.putenv"), COMMAND_LINE),
    **dict.fromkeys(("logging.basicConfig", "logging.config", ".addHandler", ".setLevel"), COMMAND_LINE),
}


def sources():
    """(room, file) of every file of the package."""
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).parts[0].removesuffix(".py"), path


ROOMS = {room for room, _ in sources()}


def room_of(dotted):
    """The room that an imported dotted name of the package leads to: `__init__` for what that one gives."""
    return next(iter(part for part in dotted.split(".")[1:2] if part in ROOMS), "__init__")


def walk(path):
    """(dotted names imported, dotted names used), with `.attribute` for an attribute of anything."""
    imported, used = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.relative_to(ROOT.parent).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            imported |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            used.add(f".{node.attr}")
            used |= {f"{node.value.id}.{node.attr}"} if isinstance(node.value, ast.Name) else set()
    return imported, used


def is_ours(dotted):
    return dotted.split(".")[0] == "sqstaskmaster"


class ArchitectureTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.imports = {room: set() for room in ROOMS}
        cls.uses = {room: set() for room in ROOMS}
        for room, path in sources():
            imported, used = walk(path)
            cls.imports[room] |= imported
            cls.uses[room] |= imported | used
        # The front door names everybody for type checkers only, and loads them on demand.
        cls.edges = {room: {room_of(name) for name in cls.imports[room] if is_ours(name)} - {room} for room in ROOMS}
        cls.edges["__init__"] = set()

    def reach(self, room):
        reached, todo = set(), [room]
        while todo:
            for next_room in self.edges.get(todo.pop(), ()):
                if next_room not in reached:
                    reached.add(next_room)
                    todo.append(next_room)
        return reached

    def test_the_walk_sees_what_is_there(self):
        """So that the laws below cannot hold for want of anything to look at."""
        self.assertLessEqual({"claims", "signals", "errors", "limits", "protocols"}, self.edges["message_handler"])
        self.assertIn("boto3", self.uses["task_manager"])
        self.assertLessEqual({"signal.signal", "signal.setitimer"}, self.uses["signals"])
        self.assertIn("sqs_errors", self.reach("message_handler"))

    def test_nobody_reaches_whom_he_may_not_know(self):
        for room, strangers in NEVER_REACHES.items():
            self.assertEqual(set(), self.reach(room) & strangers, f"{room} reaches them")

    def test_nobody_imports_whom_only_others_may(self):
        for room, friends in IMPORTED_BY.items():
            importers = {other for other, known in self.edges.items() if room in known}
            self.assertLessEqual(importers, friends, f"they import {room}")

    def test_nobody_names_what_only_others_may(self):
        for name, friends in NAMED_BY.items():
            namers = {r for r, used in self.uses.items() if any(f"{n}.".startswith(f"{name}.") for n in used)}
            self.assertLessEqual(namers, friends, f"they name {name}")

    def test_isolation_comes_down_to_the_standard_library(self):
        for room in ISOLATION & ROOMS:
            for reached in {room} | self.reach(room):
                outside = {name.split(".")[0] for name in self.imports[reached]} - {"sqstaskmaster", "psutil"}
                self.assertLessEqual(outside, sys.stdlib_module_names, f"{room} needs them, by way of {reached}")

    def test_no_import_goes_round_in_a_circle(self):
        graphlib.TopologicalSorter(self.edges).prepare()


class PackageTest(unittest.TestCase):
    def loaded_after(self, code):
        script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
        return set(json.loads(subprocess.check_output([sys.executable, "-c", script], cwd=ROOT.parent)))

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
        self.assertTrue((ROOT / "py.typed").is_file())


if __name__ == "__main__":
    unittest.main()
