"""Parts of the reference that are made from the code, so that they cannot say something else.

.. command-line::           every command with its arguments, from the parser
.. exit-codes::             the table of exit codes
.. sqs-limits::             SQS's limits, with the AWS page that says so
.. words-of:: MODULE        the docstring of a module
.. supported::              Pythons and oldest dependencies, from the package's metadata
"""

from __future__ import annotations

import argparse
import configparser
import functools
import importlib
import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sqstaskmaster._cli import main
from sqstaskmaster._service.exit_codes import MEANINGS
from sqstaskmaster._sqs import limits

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Generated(SphinxDirective):
    """A directive that stands for reStructuredText."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(inspect.getsourcefile(type(self)) or "")
        return self.parse_text_to_nodes("\n".join(self.lines()), allow_section_headings=True)

    def lines(self) -> Iterator[str]:
        raise NotImplementedError


class CommandLine(Generated):
    def lines(self) -> Iterator[str]:
        # The demo's arguments are there only where it is asked for.
        for name, command in commands(main._parser(["demo"])).items():
            yield from ["", name, "-" * len(name), ""]
            yield marked(command.description)
            yield from ["", ".. code-block:: none", ""]
            command.formatter_class = functools.partial(argparse.HelpFormatter, width=88)
            yield from (f"   {line}" for line in command.format_usage().removeprefix("usage: ").splitlines())
            yield from ["", f".. program:: sqstaskmaster {name}", ""]
            for action in command._actions:
                if action.dest not in ("help", "debug"):
                    yield from described(action)
            yield from ["Examples:", "", ".. code-block:: sh", ""]
            examples = str(command.epilog).removeprefix("examples:\n")
            yield from (f"   {line.strip()}" for line in examples.splitlines())
            yield ""


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The command's parsers by their names."""
    (found,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.choices


def described(action: argparse.Action) -> Iterator[str]:
    """An argument with its help, as Sphinx's own directive for it."""
    value = action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper())
    if isinstance(value, tuple):
        value = " ".join(value)
    if action.nargs == 0:
        names = ", ".join(action.option_strings)
    elif action.option_strings:
        names = ", ".join(f"{name} <{value}>" for name in action.option_strings)
    else:
        names = value
    yield from [f".. option:: {names}", "", f"   {marked(action.help)}", ""]


def marked(text: str | None) -> str:
    """The text of a help page, with its options as code: two hyphens would become a dash."""
    return re.sub(r"(?<![\w-])--\w[\w-]*", r"``\g<0>``", text or "")


class ExitCodes(Generated):
    def lines(self) -> Iterator[str]:
        yield from table(
            "8 92", ("code", "meaning"), ((str(code.value), marked(text)) for code, text in MEANINGS.items())
        )


LIMITS = {
    "MAX_MESSAGE_BYTES": "a message, body and attributes together",
    "MAX_BATCH_BYTES": "the messages of one request together",
    "MAX_BATCH_ENTRIES": "messages in one request",
    "MAX_MESSAGE_ATTRIBUTES": "message attributes",
    "MAX_DELAY_SECONDS": "the delay of a message",
    "MAX_WAIT_SECONDS": "a long poll",
    "MAX_IDENTIFIER_CHARACTERS": "a message group id, a deduplication id",
    "DEDUPLICATION_SECONDS": "a deduplication id is remembered for",
    "MAX_VISIBILITY_SECONDS": "one visibility timeout, and a claim as a whole",
}


class SqsLimits(Generated):
    """The constants of `_sqs.limits`: the comment above a group of them begins with AWS's page."""

    def lines(self) -> Iterator[str]:
        rows, page = [], ""
        for line in inspect.getsource(limits).splitlines():
            url = re.match(r"# (https://docs\.aws\.amazon\.com/\S+)$", line)
            constant = re.match(r"([A-Z][A-Z_]+) = ", line)
            if url:
                page = url[1]
            elif constant:
                unit = constant[1].rpartition("_")[2].lower()
                title = page.rpartition("/")[2].removesuffix(".html")
                number = f"{getattr(limits, constant[1]):,}"
                if unit in ("seconds", "bytes", "characters"):
                    number += f" {unit}"
                rows.append((LIMITS[constant[1]], number, f"`{title} <{page}>`__"))
        yield from table("40 25 35", ("what", "at most", "AWS's page"), rows)


class WordsOf(Generated):
    required_arguments = 1
    optional_arguments = 0

    def lines(self) -> Iterator[str]:
        # Without the first line, which says what the module is for.
        words = inspect.getdoc(importlib.import_module(self.arguments[0])) or ""
        yield from words.splitlines()[1:]


class Supported(Generated):
    def lines(self) -> Iterator[str]:
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg", encoding="utf-8")
        classifiers = setup["metadata"]["classifiers"].splitlines()
        pythons = [each.rpartition(" ")[2] for each in classifiers if re.search(r":: Python :: 3\.\d+$", each)]
        systems = [each.rpartition(" ")[2] for each in classifiers if each.startswith("Operating System")]
        needed = [line for line in setup["options"]["install_requires"].split("\n") if line and line[0] != "#"]
        rows = [("Python", ", ".join(pythons)), ("systems", ", ".join(systems).replace("MacOS", "macOS"))]
        rows += [(name, f"{version} or newer") for name, version in (line.split(">=") for line in needed)]
        yield from table("30 70", ("what", "supported"), rows)


def table(widths: str, head: tuple[str, ...], rows: Any) -> Iterator[str]:
    """A list-table."""
    yield from ["", ".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in (head, *rows):
        for index, cell in enumerate(row):
            yield f"   {'* -' if index == 0 else '  -'} {cell}"
    yield ""


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-line", CommandLine)
    app.add_directive("exit-codes", ExitCodes)
    app.add_directive("sqs-limits", SqsLimits)
    app.add_directive("words-of", WordsOf)
    app.add_directive("supported", Supported)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
