"""The tutorials, as committed and executed."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
FAST = "SBI_MULTILEVEL_FAST"  # if set, a tutorial uses few simulations and epochs
DATA = {"camels": "SBI_MULTILEVEL_CAMELS"}  # the variable that names its data file


def committed(name):
    """A tutorial as committed, with its outputs."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def has_fast_mode(name):
    """Whether a tutorial has a fast mode; otherwise it runs in full."""
    return any(FAST in cell.source for cell in committed(name).cells)


def execute(name, folder, monkeypatch):
    """A tutorial executed in `folder`, in fast mode if it has one."""
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
    options = {"timeout": 600, "kernel_name": "python3", "resources": where}
    # lines printed more than 0.2 s apart are separate messages
    NotebookClient(notebook, coalesce_streams=True, **options).execute()
    return notebook


def printed(notebook):
    """Printed output of a notebook, without the messages of sbi about epochs."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    text = "\n".join(out.get("text", "") for out in outputs)
    return re.sub(r" ?Neural network successfully .+? epochs\.", "", text)


def prose(notebook):
    """The text cells of a notebook."""
    cells = notebook.cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def numbers(text):
    """Decimal numbers in a text, as written, without signs."""
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]|\.\d)", text.replace("−", "-")))


def scores(text, word="NLPD"):
    """The numbers printed after a name and a word."""
    found = re.findall(rf"^(.+?),? +{word} +(-?[\d.]+)", text, flags=re.M)
    return {name.strip(): float(value) for name, value in found}


def values(pattern, text):
    """The groups of the first match of a pattern, as numbers."""
    match = re.search(pattern, text, flags=re.M)
    assert match, f"{pattern!r} is not in the outputs"
    return tuple(map(float, match.groups()))
