"""Imports between modules of the benchmark."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import sbi_multilevel_benchmarks

PACKAGE = "sbi_multilevel_benchmarks"
FOLDER = Path(sbi_multilevel_benchmarks.__file__).parent


def imports(path):
    """Modules of the package that a module imports, at any place."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(PACKAGE):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (node.module, *names)


def test_no_modules_import_each_other():
    paths = [path for path in FOLDER.rglob("*.py") if path.name != "__init__.py"]
    modules = {
        ".".join((PACKAGE, *path.relative_to(FOLDER).with_suffix("").parts)): path
        for path in paths
    }
    graph = {name: set(imports(path)) & set(modules) for name, path in modules.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules)
    # a task may use the simulators of another one
    tasks, others = f"{PACKAGE}.tasks.", [key for key in graph if "demo" not in key]
    named = {n for key in others if not key.startswith(tasks) for n in graph[key]}
    assert not [name for name in named if name.startswith(tasks)]
