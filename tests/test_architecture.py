"""The package is layered: imports go down, and training needs no simulators."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sbi_multilevel

ROOT = Path(sbi_multilevel.__file__).parent
PACKAGE = ROOT.name
# from the bottom to the top; a folder may import from itself and from those before it
LAYERS = (
    "deprecation",
    "errors",
    "utils",
    "data",
    "losses",
    "level_maps",
    "estimators",
    "simulation",
    "storage",
    "simulate",
    "training",
    "methods",
    "arviz",
    "allocation",
    "diagnostics",
    "plots",
)
# names of the field are used instead; see CONTRIBUTING.md
AVOIDED = ("dear", "told", "mend", "anew", "tame", "tamed", "judge", "judged", "heard")


def modules():
    return [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]


def folder_of(module):
    return module.removeprefix(f"{PACKAGE}.").partition(".")[0]


def imports_of(path):
    """Modules of the package that a file imports, in functions, too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            yield node.module if node.module != PACKAGE else f"{PACKAGE}.{PACKAGE}"
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith(PACKAGE))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = folder_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports_of(path):
        below = folder_of(module)
        assert LAYERS.index(below) <= LAYERS.index(own), f"imports {module}"


def test_training_imports_no_simulators_and_no_diagnostics():
    code = (
        "import sys; from sbi_multilevel import MLNPE;"
        "print(*[m for m in sys.modules if m.startswith('sbi_multilevel.')])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    folders = {folder_of(module) for module in run.stdout.split()}
    assert "training" in folders
    unwanted = {"simulation", "simulate", "storage", "allocation", "diagnostics"}
    assert not folders & (unwanted | {"plots", "arviz"})


def test_every_public_name_can_be_imported():
    for name in sbi_multilevel.__all__:
        assert getattr(sbi_multilevel, name).__name__ == name
    assert set(sbi_multilevel.__all__) <= set(dir(sbi_multilevel))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sbi_multilevel.nothing  # noqa: B018


@pytest.mark.parametrize("name", ("Hybrid", "Multilevel", "Transfer", "one_at_a_time"))
def test_earlier_names_are_deprecated(name):
    with pytest.warns(FutureWarning, match=f"{name}.* is deprecated since 0.1.0"):
        value = getattr(sbi_multilevel, name)
    assert value.__name__ in sbi_multilevel.__all__


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_words_are_those_of_the_field(path):
    words = re.findall(r"[a-z]+", path.read_text("utf-8").lower())
    assert not set(words) & set(AVOIDED)
