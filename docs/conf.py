"""Configuration of Sphinx; `make docs` builds the site, without network access."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "benchmarks"))

import pages

import sbi_multilevel

project = "sbi_multilevel"
author = "The sbi_multilevel authors"
project_copyright = author
version = release = sbi_multilevel.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "guide/_*"]

html_theme = "sphinx_book_theme"
html_title = f"sbi_multilevel {release}"
html_theme_options = {"use_download_button": False, "show_toc_level": 2}
html_copy_source = False
html_show_sourcelink = False

# notebooks are committed with their outputs, which tests compare with their text
nb_execution_mode = "off"
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath", "deflist"]

autosummary_generate = True
autosummary_context = {
    "own_members": pages.own_members,
    "sbi_members": pages.sbi_members,
}
suppress_warnings = ["config.cache"]  # of the functions above
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
add_module_names = False
napoleon_use_ivar = True  # properties are documented once
napoleon_use_rtype = False

# a name in single backticks is a link if it is an object of this package
default_role = "py:obj"
nitpick_ignore_regex = [
    # sbi, torch and Python: their inventories would have to be downloaded
    (r"py:.*", r"(?s)(?!sbi_multilevel(_benchmarks)?\.).*"),
    # types that appear in signatures only
    (r"py:class", r"sbi_multilevel(_benchmarks)?\..*"),
]


def no_heading(app, what, name, obj, options, lines):
    """Render the underlined heading `Example:` of docstrings as a rubric."""
    for index in range(len(lines) - 1):
        if lines[index] == "Example:" and set(lines[index + 1]) == {"-"}:
            lines[index : index + 2] = [".. rubric:: Example", ""]


def setup(app):
    """Write the generated pages before Sphinx reads the sources."""
    app.connect("config-inited", lambda *_: pages.write())
    app.connect("autodoc-process-docstring", no_heading, priority=100)
