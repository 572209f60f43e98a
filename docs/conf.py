"""How Sphinx builds these pages: `python -m sphinx -n -W -b html docs build/docs`."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

from sqstaskmaster.version import __version__  # noqa: E402

project = "sqstaskmaster"
author = "The sqstaskmaster founders"
copyright = "The sqstaskmaster founders, MIT licence"
release = version = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "generated", "names"]
templates_path = []
exclude_patterns = ["_ext", "plots", "pictures"]

# `name` in single backquotes is a link where it is a name of this package, and code where it is not.
default_role = "name"
smartquotes_action = "D"  # dashes, and no curly quotes

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True

# Sessions in docstrings begin with the names of the package.
doctest_global_setup = "from sqstaskmaster import *"

html_theme = "furo"
html_title = f"sqstaskmaster {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
# There is a search.
html_use_index = html_domain_indices = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": False}


def without_drawing(app, what, name, obj, options, lines):
    """The docstrings of modules draw their private rooms, for who works on them. Of these pages the first line is."""
    if what == "module" and "::" in lines:
        del lines[1:]


def setup(app):
    app.connect("autodoc-process-docstring", without_drawing)
