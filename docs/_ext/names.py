"""How a name finds its page. A name that no page has and that cannot be imported either is a warning, as ever.

- A name of this package may be written short: `TaskManager.submit` is sqstaskmaster.task_manager.TaskManager.submit.
- What belongs to Python, or to boto3, is looked up by importing it; Python's own become links to its documentation.
- The default role (single backquotes, as in the docstrings) is a link where it names something of this package, and
  plain code everywhere else.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.roles import XRefRole

import sqstaskmaster

PYTHON = "https://docs.python.org/3/library/"
# The built-in types that have their place there; the others are among the functions.
STDTYPES = ("bytearray", "bytes", "dict", "frozenset", "list", "memoryview", "range", "set", "str", "tuple")
# Other packages whose names may be written without being linked.
NEIGHBOURS = ("boto3", "botocore", "sqstaskmaster")


class NameRole(XRefRole):
    """`name`: a link where there is something to link to."""

    def process_link(
        self, env: Any, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        refnode["optional"] = True
        refnode["reftype"] = "obj"
        refnode["refdomain"] = "py"
        refnode["py:module"] = refnode["py:class"] = None
        return title, target.removesuffix("()")


def resolve(app: Sphinx, env: Any, node: addnodes.pending_xref, contnode: nodes.Element) -> nodes.Element | None:
    """What Sphinx itself has not found."""
    if node.get("refdomain") != "py":
        return None
    optional = node.get("optional", False)
    target = node["reftarget"]
    domain = env.get_domain("py")
    # A word in single backquotes may happen to be a module's name too.
    names = full_names(target) if not optional or target.partition(".")[0] in sqstaskmaster.__all__ else []
    for name in names:
        if name in domain.objects:
            entry = domain.objects[name]
            return _link(app, node, entry, contnode)
    if optional:
        return contnode
    module = node.get("py:module")
    if module and hasattr(importlib.import_module(module), target):
        return contnode  # the type of an argument that is no public name
    home = home_of(target)
    if home is None:
        return None
    where = python_page(*home)
    if where is None:
        return contnode
    return nodes.reference("", "", contnode, internal=False, refuri=where, reftitle="in Python's documentation")


def _link(app: Sphinx, node: addnodes.pending_xref, entry: Any, contnode: nodes.Element) -> nodes.Element:
    builder = app.builder
    uri = builder.get_relative_uri(node.get("refdoc", app.env.docname), entry.docname)
    return nodes.reference("", "", contnode, internal=True, refuri=f"{uri}#{entry.node_id}")


def full_names(target: str) -> list[str]:
    """The names under which this package's pages may have `target`, a name as it is written."""
    name = target.removeprefix("sqstaskmaster.")
    first, dot, rest = name.partition(".")
    if first not in sqstaskmaster.__all__:
        return [f"sqstaskmaster.{name}"]
    value = getattr(sqstaskmaster, first)
    return [f"{getattr(value, '__module__', '')}.{name}", f"sqstaskmaster.{name}"]


def home_of(target: str) -> tuple[str, str] | None:
    """(module, name in it) of something that can be imported, outside this package's pages."""
    if hasattr(builtins, target.partition(".")[0]):
        return "builtins", target
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        module, rest = ".".join(parts[:length]), parts[length:]
        if parts[0] not in sys.stdlib_module_names and parts[0] not in NEIGHBOURS:
            return None
        try:
            value = importlib.import_module(module)
        except ImportError:
            continue
        for name in rest:
            if not hasattr(value, name):
                return None
            value = getattr(value, name)
        return module, ".".join(rest)
    return None


def python_page(module: str, name: str) -> str | None:
    """Where Python documents it; None for what is not Python's own."""
    if module == "builtins":
        first = name.partition(".")[0]
        value = getattr(builtins, first)
        if isinstance(value, type) and issubclass(value, BaseException):
            return f"{PYTHON}exceptions.html#{name}"
        page = "constants" if value in (None, True, False) else "stdtypes" if first in STDTYPES else "functions"
        return f"{PYTHON}{page}.html#{name}"
    if module.partition(".")[0] in NEIGHBOURS:
        return None
    module = module.removeprefix("_")  # where C code says that it is from
    return f"{PYTHON}{module}.html#{module}.{name}" if name else f"{PYTHON}{module}.html"


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("name", NameRole(innernodeclass=nodes.literal))
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
