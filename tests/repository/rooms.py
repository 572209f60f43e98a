"""Reads what each module of the package imports and names, and which rooms ARCHITECTURE.rst says may know which."""

import ast
import graphlib
import pathlib
import re
import statistics

import sqstaskmaster

PACKAGE = pathlib.Path(sqstaskmaster.__file__).parent

# A line of the drawing: the room, what it may know ("nobody", or rooms), after an arrow.
_LINE = re.compile(r"^   (?P<room>[a-z_]+) +-> (?P<knows>[a-z_, ]+)$", re.MULTILINE)


def sources(package=PACKAGE):
    """{dotted name below the package: file}; a room's `__init__` is the room itself, the front door is ``__init__``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def room_of(module):
    """The room of a module: the folder behind the porch, or the porch's module itself."""
    return module.split(".")[0]


def drawn(text):
    """{room: the rooms it may know} from the drawing."""
    return {
        line["room"]: set() if line["knows"].strip() == "nobody" else set(map(str.strip, line["knows"].split(",")))
        for line in _LINE.finditer(text)
    }


def walk(path):
    """(dotted names imported, dotted names used), with `.attribute` for an attribute of anything.

    What is imported for type checkers only counts: whoever reads one module has to know the other.
    """
    imported, used = set(), set()
    todo = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            used.add(f".{node.attr}")
            used |= {f"{node.value.id}.{node.attr}"} if isinstance(node.value, ast.Name) else set()
    return imported, used


def module_of(dotted, modules):
    """The module of ours that an imported dotted name leads to: `__init__` for what the front door gives."""
    parts = dotted.split(".")[1:]
    while parts and ".".join(parts) not in modules:
        parts.pop()
    return ".".join(parts) or "__init__"


def known(package=PACKAGE):
    """{room: the rooms it knows}, as the imports are."""
    modules = sources(package)
    found = {}
    for module, path in modules.items():
        ours = {name for name in walk(path)[0] if name.split(".")[0] == "sqstaskmaster"}
        reached = {room_of(module_of(name, modules)) for name in ours}
        found.setdefault(room_of(module), set()).update(reached - {room_of(module)})
    return found


def classes(folder=PACKAGE):
    """{(file, class): its methods}: every function in the body of the class, properties too, what is inherited not."""
    return {
        (str(path.relative_to(folder)), node.name): [
            each.name for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }


def porch(package=PACKAGE):
    """The modules whose names have no underscore."""
    return [module for module in sources(package) if not any(part.startswith("_") for part in module.split("."))]


def print_sizes():
    """Names on the porch, and how large modules and classes are: median, and the largest three."""
    lines = {module: len(path.read_text().splitlines()) for module, path in sources().items()}
    methods = {f"{file}: {name}": len(found) for (file, name), found in classes().items()}
    print(f"\nnames on the porch: {len(sqstaskmaster.__all__)}, in {len(porch())} modules")
    for what, sizes in (("lines a module", lines), ("methods a class", methods)):
        largest = sorted(sizes.items(), key=lambda each: -each[1])[:3]
        print(f"{what}: median {statistics.median(sizes.values()):g}, largest", end=" ")
        print(", ".join(f"{name} {size}" for name, size in largest), f"({len(sizes)} in all)")


if __name__ == "__main__":
    # The drawing as it would be, and sizes: python -m tests.repository.rooms
    rooms = known()
    for each in reversed(list(graphlib.TopologicalSorter(rooms).static_order())):
        print(f"   {each:<16} -> {', '.join(sorted(rooms[each])) or 'nobody'}")
    print_sizes()
