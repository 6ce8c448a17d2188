"""Generates the pages of the site that follow from the code, README and notebooks.

`api/` has a page for each subpackage and public name, `theory/` one for each module
whose docstring has a formula, `modules.rst` the other modules, `guide/` the sections of
the README, `tutorials/` the notebooks. A new public name, module, section or notebook
is included automatically. `conf.py` writes the pages before Sphinx reads them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sbi_multilevel
import sbi_multilevel_benchmarks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE, BENCHMARKS = "sbi_multilevel", "sbi_multilevel_benchmarks"
FOLDERS = {PACKAGE: ROOT / PACKAGE, BENCHMARKS: ROOT / "benchmarks" / BENCHMARKS}
TUTORIALS = ROOT / "tutorials"
GENERATED = ("api", "guide", "theory", "tutorials")
# the order of groups in indices; others follow by name
_ORDER = (
    "methods",
    "simulation",
    "data",
    "losses",
    "level_maps",
    "estimators",
    "training",
    "allocation",
    "diagnostics",
)


def public_names() -> dict[str, Any]:
    """Each public name by its shortest path, e.g. `sbi_multilevel.HybridNPE`.

    Those of `sbi_multilevel.__all__`, and those of the `__all__` of each subpackage and
    of the benchmark that are not among them.
    """
    top = {name: getattr(sbi_multilevel, name) for name in sbi_multilevel.__all__}
    names = {f"{PACKAGE}.{name}": value for name, value in top.items()}
    found = pkgutil.walk_packages(sbi_multilevel.__path__, f"{PACKAGE}.")
    packages = [importlib.import_module(info.name) for info in found if info.ispkg]
    for package in [*packages, sbi_multilevel_benchmarks]:
        for name in getattr(package, "__all__", ()):
            if name not in top:
                names[f"{package.__name__}.{name}"] = getattr(package, name)
    return names


def groups() -> dict[str, list[str]]:
    """Paths of public names by the page that lists them: a subpackage or a module."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, value in public_names().items():
        of_package = path.split(".")[1:-1]
        group = of_package[0] if of_package else value.__module__.split(".")[1]
        if path.startswith(f"{BENCHMARKS}."):
            group = "benchmarks"
        found["simulation" if group == "simulate" else group].append(path)
    return {group: sorted(found[group]) for group in sorted(found)}


def module_of(group: str) -> str:
    """The module that a page of the API describes."""
    return BENCHMARKS if group == "benchmarks" else f"{PACKAGE}.{group}"


def own_members(path: str) -> list[str]:
    """Public methods and properties of a class that sbi does not have."""
    return [name for name, is_of_sbi in _members(path) if not is_of_sbi]


def sbi_members(path: str) -> list[str]:
    """Public methods of a class that sbi has under the same name."""
    return [name for name, is_of_sbi in _members(path) if is_of_sbi]


def _members(path: str) -> list[tuple[str, bool]]:
    """Public methods and properties of a class, and whether sbi has the name."""
    value = public_names()[path]
    of_sbi = {
        name
        for base in inspect.getmro(value)
        if base.__module__.partition(".")[0] == "sbi"
        for name in vars(base)
    }
    return [
        (name, name in of_sbi)
        for name in dir(value)
        if not name.startswith("_")
        and _is_documented_here(inspect.getattr_static(value, name))
    ]


def _is_documented_here(member: Any) -> bool:
    """Whether a member of a class is a function or property of this package or sbi."""
    inner = getattr(member, "__func__", getattr(member, "fget", member))
    home = getattr(inner, "__module__", "")
    return inspect.isfunction(inner) and home.partition(".")[0] in (PACKAGE, "sbi")


def module_docs() -> dict[str, str]:
    """The docstring of each module, read without importing it."""
    docs = {}
    for folder in FOLDERS.values():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            docs[name] = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docs


def _is_package(module: str) -> bool:
    package, *parts = module.split(".")
    return FOLDERS[package].joinpath(*parts).is_dir()


def pages() -> dict[str, str]:
    """The text of each generated page, by its path below `docs/`."""
    return {**_api_pages(), **_module_pages(), **_guide_pages(), **_tutorial_pages()}


def write() -> None:
    """Write the pages, and delete earlier ones that are no longer generated."""
    wanted = pages()
    for folder in GENERATED:
        (DOCS / folder).mkdir(exist_ok=True)
        for path in (DOCS / folder).glob("*"):
            # autosummary writes a page of each name beside these pages
            known = path.stem in public_names() or f"{folder}/{path.name}" in wanted
            if not known:
                path.unlink()
    for name, text in wanted.items():
        path = DOCS / name
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    shutil.copy2(TUTORIALS / "demo.png", DOCS / "tutorials")


def _api_pages() -> dict[str, str]:
    docs, names, found = module_docs(), public_names(), {}
    for group, paths in groups().items():
        module = module_of(group)
        text = _titled(f"``{group}``", "=")
        if _is_package(module):
            text += _module(module) + docs[module] + "\n\n"
        else:
            text += f"{_first_sentence(docs[module])} See `{module}`.\n\n"
        plain = [path for path in paths if not _has_docstring(names[path])]
        listed = [path for path in paths if path not in plain]
        text += ".. py:currentmodule:: None\n\n"
        text += ".. autosummary::\n   :toctree:\n   :nosignatures:\n\n"
        text += "".join(f"   {path}\n" for path in listed) + "\n"
        for path in plain:
            text += f".. py:data:: {path}\n   :value: {_repr(names[path])}\n\n"
        found[f"api/{group}.rst"] = text
    found["api/index.rst"] = _titled("API reference", "=") + _toctree(
        sorted(groups(), key=_place)
    )
    return found


def _has_docstring(value: Any) -> bool:
    """Whether it is a class or a function: a constant has that of its type."""
    return inspect.isclass(value) or inspect.isfunction(value)


def _repr(value: Any) -> str:
    """The value of a constant, types without their modules."""
    return re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", repr(value))


def _module_pages() -> dict[str, str]:
    found, others = {}, _titled("Modules", "=") + _OTHERS
    names, described = public_names(), {module_of(group) for group in groups()}
    for module, doc in module_docs().items():
        name = module.removeprefix(f"{PACKAGE}.").replace(BENCHMARKS, "benchmarks")
        if module == PACKAGE or (_is_package(module) and module in described):
            continue
        if ":math:" in doc or ".. math::" in doc:
            first, _, rest = doc.partition("\n\n")
            title = _titled(" ".join(first.split()).rstrip("."), "=")
            # a public function may have the path of its module
            known = "" if module in names else _module(module)
            found[f"theory/{name}.rst"] = title + known + rest + "\n"
        else:
            others += _titled(f"``{name}``", "-") + _module(module) + doc + "\n\n"
    by_group: dict[str, list[str]] = defaultdict(list)
    for path in found:
        name = path.removeprefix("theory/").removesuffix(".rst")
        by_group[name.partition(".")[0]] += [name]
    index = _titled("Theory", "=") + _THEORY
    for group in sorted(by_group, key=_place):
        title = group.replace("_", " ").capitalize()
        index += _titled(title, "-") + _toctree(by_group[group])
    return {**found, "theory/index.rst": index, "modules.rst": others}


def _guide_pages() -> dict[str, str]:
    """The sections of the README, with links that work from `docs/guide/`."""
    text = (ROOT / "README.md").read_text("utf-8")
    head, *sections = re.split(r"^## (?=\S)", text, flags=re.M)
    found = {"guide/_intro.md": _relinked(head.partition("\n")[2])}
    for section in sections:
        title, _, body = section.partition("\n")
        body = re.sub(r"^###", "##", _relinked(body), flags=re.M)
        found[f"guide/{_slug(title)}.md"] = f"# {title.strip()}\n{body}"
    names = [path[len("guide/") : -len(".md")] for path in list(found)[1:]]
    found["guide/index.rst"] = _titled("User guide", "=") + _toctree(names)
    return found


def _relinked(text: str) -> str:
    """Text of the README with links that work in the site; other links are removed."""
    text = re.sub(r"\]\((tutorials/[\w.]+\.(?:ipynb|png))\)", r"](../\1)", text)
    text = text.replace(f"]({_EXTERNAL})", f"](../{_EXTERNAL}.md)")
    text = re.sub(r"\]\(docs/([\w/]+\.md)\)", r"](../\1)", text)
    return re.sub(r"\[([^]]+)\]\((?!\.\./|https?:)[^)]*\)", r"\1", text)


def _tutorial_pages() -> dict[str, str]:
    """The notebooks with links that work in the site, and the example scripts."""
    found = {}
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        text = path.read_text("utf-8").replace("](../README.md)", "](../index.md)")
        text = text.replace("](external_program)", "](external_program.md)")
        text = text.replace("](../docs/", "](../")
        found[f"tutorials/{path.name}"] = text
    scripts = sorted((ROOT / _EXTERNAL).glob("*.py"))
    text = "# An external program, run here or elsewhere\n"
    for path in scripts:
        source = f"../../{path.relative_to(ROOT).as_posix()}"
        text += f"\n## {path.name}\n\n```{{literalinclude}} {source}\n```\n"
    found[f"{_EXTERNAL}.md"] = text
    # the gallery is an entry of the site, in `index.md`
    names = [Path(name).stem for name in found if name != f"{_GALLERY}.ipynb"]
    found["tutorials/index.rst"] = _titled("Tutorials", "=") + _toctree(names)
    return found


_EXTERNAL = "tutorials/external_program"
_GALLERY = "tutorials/gallery"
_THEORY = """\
Each page is the docstring of the module it is named after.

"""
_OTHERS = """\
Internal modules, for contributors. Modules with formulas have a page of their own under
:doc:`theory/index`.

"""


def _place(group: str) -> tuple[int, str]:
    return _ORDER.index(group) if group in _ORDER else len(_ORDER), group


def _toctree(names: Iterable[str]) -> str:
    lines = "".join(f"   {name}\n" for name in names)
    return f".. toctree::\n   :maxdepth: 1\n\n{lines}\n"


def _titled(title: str, mark: str) -> str:
    return f"{title}\n{mark * len(title)}\n\n"


def _module(name: str) -> str:
    """Declare the module, so that references to it resolve."""
    return f".. py:module:: {name}\n.. py:currentmodule:: {PACKAGE}\n\n"


def _first_sentence(doc: str) -> str:
    return " ".join(doc.partition("\n\n")[0].split())


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")
