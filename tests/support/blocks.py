"""The code blocks of a page of reStructuredText, and what can be held of each without running it.

A Python block whose first line is `# name.py` is a file of its page; one without continues the file before it. Two
comments, each on the line before a block, change what is done:

    .. run                  this file is run as a script, with a queue, and must end with exit code 0
    .. not checked: reason  nothing is held of this block
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The queue of all pages. A test puts one of its own in its place, as a user would.
QUEUE_URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/train"

_DIRECTIVE = re.compile(r"( *)\.\. code-block:: ([\w+-]+)$")
_OPTION = re.compile(r" +:[\w-]+:")
_NAME = re.compile(r"# (\w+)\.py\n")
_MARK = re.compile(r" *\.\. (run|not checked: \S.*)$")
_END_OF_COMMAND = re.compile(r"[|&;<>()]+|[0-9]*[<>]+.*")


@dataclasses.dataclass(frozen=True)
class Block:
    """`line`: that of its first line in the page, counted from 1. `mark`: the comment before it, or ""."""

    page: pathlib.Path
    line: int
    language: str
    mark: str
    source: str

    @property
    def name(self):
        """The name of the module that it begins, or None."""
        found = _NAME.match(self.source) if self.language == "python" else None
        return found and found[1]

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(path):
    """All code blocks of a page, in order."""
    lines = path.read_text(encoding="utf-8").split("\n")
    found, mark, index = [], "", 0
    while index < len(lines):
        directive = _DIRECTIVE.match(lines[index])
        index += 1
        if not directive:
            if lines[index - 1].strip():
                marked = _MARK.match(lines[index - 1])
                mark = marked[1] if marked else ""
            continue
        while _OPTION.match(lines[index]):
            index += 1
        while index < len(lines) and not lines[index]:
            index += 1
        begin, indentation = index, len(lines[index]) - len(lines[index].lstrip())
        while index < len(lines) and (not lines[index] or lines[index].startswith(" " * indentation)):
            index += 1
        source = "\n".join(line[indentation:] for line in lines[begin:index]).rstrip() + "\n"
        if indentation <= len(directive[1]):
            raise AssertionError(f"{path}:{begin + 1}: a code block without content")
        found.append(Block(path, begin + 1, directive[2], mark, source))
        mark = ""
    return found


def python_files(path):
    """[(module name, source)] of a page: each named block with those that continue it.

    Each line is where it is in the page, so that whatever finds a fault in it names the line of the page.
    """
    files = []
    for block in blocks(path):
        if block.language != "python" or block.mark.startswith("not checked"):
            continue
        if block.name or not files:
            files.append((block.name or "page", ""))
        name, source = files[-1]
        files[-1] = (name, source + "\n" * (block.line - 1 - source.count("\n")) + block.source)
    return files


def as_modules(path, prefix):
    """{module name: source}: the Python files of a page under names that no other page has.

    A name that comes again is a file written anew; those that import it mean the one before them, or else the first.
    """
    files = python_files(path)
    modules = {}
    for index, (_, source) in enumerate(files):
        for name in {name for name, _ in files}:
            written = [other for other, (each, _) in enumerate(files) if each == name]
            nearest = max((other for other in written if other < index), default=written[0])
            source = re.sub(rf"(?m)^from {name} import", f"from {prefix}_{nearest}_{name} import", source)
            source = re.sub(rf"(?m)^import {name}$", f"import {prefix}_{nearest}_{name} as {name}", source)
        modules[f"{prefix}_{index}_{files[index][0]}"] = source
    return modules


def commands(source):
    """The arguments of each `sqstaskmaster` command of a shell script."""
    found = []
    for line in source.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for index, word in enumerate(words):
            is_module = words[max(0, index - 1)] == "-m" and "python" in words[max(0, index - 2)]
            is_command = word.rpartition("/")[2] == "sqstaskmaster" and "install" not in words[:index]
            if is_command and (is_module or words[max(0, index - 1)] != "-m"):
                ends = [end for end in range(index, len(words)) if _END_OF_COMMAND.fullmatch(words[end])]
                found.append(words[index + 1 : min(ends, default=len(words))])
    return found
