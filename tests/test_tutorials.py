"""Every tutorial runs from top to bottom, and says what it says it does."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "tutorials"


@pytest.fixture(scope="module")
def executed():
    notebook = nbformat.read(FOLDER / "toggle_switch.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    return notebook


def printed(notebook):
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "\n".join(out.get("text", "") for out in outputs)


def test_the_toggle_switch_tutorial_runs(executed):
    nlpd = re.findall(r"^(.+?) +NLPD (-?[\d.]+) ±", printed(executed), flags=re.M)
    nlpd = {name: float(value) for name, value in nlpd}
    # what the text claims: pairs and cheap rows beat the pairs alone
    assert nlpd["MLNPE"] < nlpd["NPE, 150 dear rows"]
    assert nlpd["MLNPE, aligned"] < nlpd["MLNPE"]


def execute(name, folder):
    """A tutorial after it ran in `folder`, where sbi writes its logs."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=where
    )
    client.execute()
    return notebook


@pytest.mark.slow
def test_the_transfer_tutorial_runs(tmp_path):
    notebook = execute("transfer", tmp_path)
    text = re.sub(r"Neural network .+? epochs\.", "", printed(notebook))
    nlpd = re.findall(r"^\s*(.+?) +NLPD +(-?[\d.]+) ±", text, flags=re.M)
    nlpd = {name: float(value) for name, value in nlpd}
    # what the text claims: transfer helps, the cheap rows alone do not
    plain = nlpd["NPE, 50 dear rows"]
    assert nlpd["exact posterior"] < nlpd["MFNPE, ensemble of 5"] < plain
    assert nlpd["MFNPE"] < plain < nlpd["prior"] < nlpd["NPE, cheap rows"]
    assert nlpd["MFNPE"] < nlpd["MFNPE, useless cheap rows"]


@pytest.mark.slow
def test_the_budget_tutorial_runs(tmp_path):
    notebook = execute("budget", tmp_path)
    text = printed(notebook)
    # the pilot's advice, and the budget
    assert "Level 0 is not worth having" in text
    assert 199 <= float(re.search(r"rows for ([\d.]+) hours", text)[1]) <= 200
    # interrupted in the middle of level 1, resumed, and nothing simulated twice
    interrupted = re.search(r"^interrupted\n(.+)$", text, flags=re.M)[1]
    assert re.search(r"level 1: [1-9]\d* pending, [1-9]\d* ok", interrupted)
    runs = re.findall(r"level \d: (\d+) runs finished, needed (\d+)", text)
    assert len(runs) == 3
    assert all(finished == needed for finished, needed in runs)
    # what failed is named, run again, and then in; what is NaN stays so
    assert len(re.findall(r"failed, OSError: no answer from the licence", text)) == 3
    summaries = re.findall(r"^level 0: .+level 2: (.+)$", text, flags=re.M)
    assert "3 failed" in summaries[-2] and "failed" not in summaries[-1]
    assert "pending" not in summaries[-1] and "invalid" in summaries[-1]
    nlpd = re.findall(r"^(.+?) +NLPD (-?[\d.]+)", text, flags=re.M)
    nlpd = {name: float(value) for name, value in nlpd}
    # what the text claims: better than dear rows, worse than level 1 alone
    assert nlpd["NPE, 2000 medium rows"] < nlpd["MLNPE"] < nlpd["NPE, 200 dear rows"]
    assert nlpd["NPE, 200 dear rows"] < nlpd["prior"]
    # other fits to the pilot's rows leave out level 0, too
    chains = re.findall(r"best levels \((.+?)\)", text)
    assert len(chains) == 3 and not any(chain.startswith("0") for chain in chains)
    # cheap levels that fail spoil the posterior, as few rows that do not fail do not
    fails = re.findall(r"^cheap levels fail +NLPD (-?[\d.]+)", text, flags=re.M)
    intact = re.findall(r"none fail +NLPD (-?[\d.]+)", text)
    assert len(fails) == len(intact) == 2
    assert max(map(float, fails)) > nlpd["prior"] > max(map(float, intact))


def test_committed_outputs_name_no_files_of_a_machine():
    for path in FOLDER.glob("*.ipynb"):
        text = path.read_text()
        assert '"output_type"' in text  # committed with outputs
        assert not re.search(r"site-packages|/home/|/tmp/|/root/", text)
