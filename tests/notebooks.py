"""The tutorials: as they were committed, and executed anew."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
FAST = "SBI_MULTILEVEL_FAST"  # set, it makes a tutorial run on few rows and epochs
DATA = {"camels": "SBI_MULTILEVEL_CAMELS"}  # what names the file of a tutorial


def committed(name):
    """A tutorial as it was committed, with its outputs."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def has_fast_mode(name):
    """Whether a tutorial knows the variable; the others always run in full."""
    return any(FAST in cell.source for cell in committed(name).cells)


def execute(name, folder, monkeypatch):
    """A tutorial after it ran in `folder`, in fast mode if it has one."""
    variable = DATA.get(name)
    if variable and not os.environ.get(variable):
        pytest.skip(f"needs the file that {variable} names")
    monkeypatch.setenv(FAST, "1")
    notebook = committed(name)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=where
    ).execute()
    return notebook


def printed(notebook):
    """Everything that a notebook printed, without what sbi says of epochs."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    text = "\n".join(out.get("text", "") for out in outputs)
    return re.sub(r" ?Neural network successfully .+? epochs\.", "", text)


def prose(notebook):
    """Everything that a notebook says beside its code."""
    cells = notebook.cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def numbers(text):
    """Numbers with decimals in a text, as they are written, without their signs."""
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]|\.\d)", text.replace("−", "-")))


def scores(text, word="NLPD"):
    """The numbers that are printed behind a name and a word."""
    found = re.findall(rf"^(.+?),? +{word} +(-?[\d.]+)", text, flags=re.M)
    return {name.strip(): float(value) for name, value in found}


def values(pattern, text):
    """The groups of the first match of a pattern, as numbers."""
    match = re.search(pattern, text, flags=re.M)
    assert match, f"{pattern!r} is not in the outputs"
    return tuple(map(float, match.groups()))
