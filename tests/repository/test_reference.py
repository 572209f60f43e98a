"""The reference leaves nothing out: modules, names, fields, actions, outcomes, permissions."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import json
import pathlib
import pkgutil
import re
import types
import unittest

import sqstaskmaster
from sqstaskmaster import LocalMessage, Outcome
from sqstaskmaster._claim import forwarding, report
from tests.support.blocks import ROOT, blocks

REFERENCE = ROOT / "docs" / "reference"
PACKAGE = pathlib.Path(sqstaskmaster.__file__).parent

# The methods of a Report, or of what passes them on, and where they take the action.
ACTION_AT = {"log": 1, "trouble": 2, "trouble_apart": 3, "facts": 0}


def page(name):
    return (REFERENCE / f"{name}.rst").read_text(encoding="utf-8")


def public_modules():
    names = [module.name for module in pkgutil.iter_modules(sqstaskmaster.__path__)]
    return [f"sqstaskmaster.{name}" for name in names if not name.startswith("_")]


def public_names():
    """{name: docstring, inherited where it has none of its own} of all that has no underscore."""
    found = {name: getattr(sqstaskmaster, name).__doc__ for name in sqstaskmaster.__all__ if name[0] != "_"}
    for module in map(importlib.import_module, public_modules()):
        found[module.__name__] = module.__doc__
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(value) or inspect.isroutine(value):
                found[f"{module.__name__}.{name}"] = value.__doc__
            if inspect.isclass(value):
                for member in (member for member in dir(value) if not member.startswith("_")):
                    static = inspect.getattr_static(value, member)
                    owner = next(each for each in value.__mro__ if member in vars(each))
                    told = (property, classmethod, staticmethod, types.FunctionType)
                    if owner.__module__.startswith("sqstaskmaster") and isinstance(static, told):
                        found[f"{module.__name__}.{name}.{member}"] = inspect.getdoc(getattr(value, member))
    return found


def untold(name, function, docstring):
    """The arguments of a public function that its docstring does not name."""
    return [
        f"{name}({argument})"
        for argument, each in inspect.signature(function).parameters.items()
        if argument != "self" and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if not re.search(rf"\b{argument}\b", docstring or "")
    ]


def actions():
    """Every action that a line of the log may have, as the source has it."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values)
                values = [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "action"]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ACTION_AT:
                values = node.args[ACTION_AT[node.func.attr] :][:1]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "_log_exc" in node.func.attr:
                values = node.args[2:3]
            else:
                continue
            constants = [each.value for value in values for each in ast.walk(value) if isinstance(each, ast.Constant)]
            found.update(each for each in constants if isinstance(each, str) and re.fullmatch(r"[a-z_]+", each))
    return found


def first_column(text):
    """The literals in the first cells of the list-tables of a page."""
    cells = re.findall(r"(?m)^   \* - (.*)$", text)
    return {literal for cell in cells for literal in re.findall(r"``([^`]+)``", cell)}


class TestReference(unittest.TestCase):
    def test_every_public_module_has_a_page(self):
        pages = "\n".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.rst"))
        listed = re.findall(r"(?m)^\.\. automodule:: (\S+)$", pages)
        self.assertEqual([], [name for name in public_modules() if name not in listed], "add docs/reference/NAME.rst")

    def test_every_public_name_has_a_docstring(self):
        names = public_names()
        self.assertGreater(len(names), 120)
        self.assertEqual([], [name for name, docstring in names.items() if not (docstring or "").strip()])

    def test_every_argument_is_told_in_its_docstring(self):
        found = []
        for name in sqstaskmaster.__all__:
            value = getattr(sqstaskmaster, name)
            # Errors, and the task that runs, are for this package to make.
            if not inspect.isclass(value) or issubclass(value, (BaseException, sqstaskmaster.CurrentTask, enum.Enum)):
                continue
            if "__init__" in vars(value):
                found += untold(name, value.__init__, value.__doc__)
            for member, function in vars(value).items():
                if not member.startswith("_") and inspect.isfunction(function):
                    found += untold(f"{name}.{member}", function, inspect.getdoc(function))
        self.assertEqual([], found)

    def test_every_action_of_the_log_is_told(self):
        known, told = actions(), first_column(page("log").partition("\nActions\n")[2])
        self.assertGreater(len(known), 40)
        self.assertEqual([], sorted(known - told - {"action"}), "docs/reference/log.rst lacks these")
        self.assertEqual([], sorted(told - known - {"action"}), "docs/reference/log.rst has these, and the code not")

    def test_every_field_of_the_log_is_told(self):
        message = LocalMessage("{}", {}, {})
        facts = report.Report(message, "a", print, lambda: report, lambda: 0.0).facts("finished")
        told = first_column(page("log").partition("\nFields\n")[2].partition("\nActions\n")[0])
        self.assertEqual(told, {*facts, *report._WORDS})

    def test_everything_that_notify_is_told_is_told_here(self):
        message = LocalMessage("{}", {"SentTimestamp": "0"}, {})
        told = report.Report(message, "a", print, lambda: report, lambda: 0.0, "url")
        told.stack = "somewhere"
        self.assertEqual([], sorted(set(told.context()) - first_column(page("notify"))))

    def test_every_outcome_is_told_with_what_becomes_of_the_message(self):
        told = re.findall(r"(?m)^   \* - .*\n     - ``([a-z -]+)``$", page("outcomes"))
        self.assertEqual(sorted(told), sorted(map(str, Outcome)))

    def test_everything_that_is_sent_on_with_a_message_is_told(self):
        chain = {"continuation": 1, "first_id": "a", "first_sent": "0"}
        attribute = {"StringValue": json.dumps(chain), "DataType": "String"}
        message = LocalMessage("{}", {"ApproximateReceiveCount": "3"}, {forwarding.ATTRIBUTE: attribute})
        sent = forwarding.dead_letter(message, "a", ValueError("b"), "c")["MessageAttributes"][forwarding.ATTRIBUTE]
        told = first_column(page("message").partition("\nOn messages that were sent on\n")[2])
        self.assertEqual({*json.loads(sent["StringValue"])}, told)

    def test_policies_are_least_privilege(self):
        allowed = []
        policies = [json.loads(block.source) for block in blocks(REFERENCE / "permissions.rst")]
        for statement in (statement for policy in policies for statement in policy["Statement"]):
            self.assertEqual(statement["Effect"], "Allow")
            self.assertNotIn("*", json.dumps(statement))
            allowed += [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        self.assertIn("sqs:ChangeMessageVisibility", allowed)
        self.assertFalse([action for action in allowed if "List" in action or "Create" in action])


if __name__ == "__main__":
    unittest.main()
