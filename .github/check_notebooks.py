"""Check that committed notebooks have the outputs of one complete run.

Outputs stay in the repository: the site shows them, and tests compare them with the
text. This script removes nothing. It fails where cells did not run from top to bottom,
where an output is an error, where paths of somebody's machine or settings of an editor
are kept, and where the format is not valid.

    python .github/check_notebooks.py tutorials/*.ipynb
"""

import re
import sys
from pathlib import Path

import nbformat

PATHS = re.compile(r"site-packages|/home/|/root/|/tmp/|/Users/|[A-Z]:\\\\Users")
CELL_METADATA = {"tags"}
NOTEBOOK_METADATA = {"kernelspec", "language_info"}


def problems(path):
    """What is wrong with a notebook, a sentence each."""
    text = Path(path).read_text("utf-8")
    notebook = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"is not valid: {error}"
        return
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        yield "did not run from top to bottom: restart the kernel and run all cells"
    if not any(cell.outputs for cell in cells):
        yield "has no outputs: run it, and keep them"
    if any(out.output_type == "error" for cell in cells for out in cell.outputs):
        yield "has an error among its outputs"
    found = PATHS.search(text)
    if found:
        yield f"names a path of one machine, {found[0]!r}"
    extra = {key for cell in notebook.cells for key in cell.metadata} - CELL_METADATA
    extra |= set(notebook.metadata) - NOTEBOOK_METADATA
    if extra:
        yield f"keeps settings of an editor: {', '.join(sorted(extra))}"


def main(paths):
    """Print all problems; 1 if there are any."""
    found = [f"{path} {problem}" for path in paths for problem in problems(path)]
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
