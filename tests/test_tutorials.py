"""Every tutorial runs from top to bottom, and its text says what its outputs say.

Two kinds of test. The committed outputs, of a full run, are compared with what the text
claims of them; that is quick. And each notebook is executed, in fast mode where it has
one: few rows and epochs, from which no claim about a method follows, so that only what
does not depend on training is asserted. Tutorials without a fast mode run in full, and
make all of their claims again.
"""

import re

import pytest

from sbi_multilevel import plots
from tests.notebooks import (
    FAST,
    FOLDER,
    NAMES,
    committed,
    execute,
    has_fast_mode,
    numbers,
    printed,
    prose,
    scores,
    values,
)
from tests.test_docs import pages

# ------------------------------------------------------------------ claims of texts


def toggle_switch(text):
    nlpd = scores(text)
    # pairs and cheap rows beat the pairs alone
    assert nlpd["MLNPE"] < nlpd["NPE, 150 dear rows"]
    assert nlpd["MLNPE, aligned"] < nlpd["MLNPE"]


def transfer(text):
    nlpd = scores(text)
    # transfer helps, the cheap rows alone do not
    plain = nlpd["NPE, 50 dear rows"]
    assert nlpd["exact posterior"] < nlpd["MFNPE, ensemble of 5"] < plain
    assert nlpd["MFNPE"] < plain < nlpd["prior"] < nlpd["NPE, cheap rows"]
    assert nlpd["MFNPE"] < nlpd["MFNPE, useless cheap rows"]


def budget(text):
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
    nlpd = scores(text)
    # better than dear rows, worse than level 1 alone
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


def start_here(text):
    nlpd = scores(text)
    # both kinds of rows beat either kind; cheap rows alone are worse than the prior
    assert nlpd["MLNPE"] < nlpd["MLNPE, shuffled"] < nlpd["NPE, dear rows"]
    assert nlpd["NPE, dear rows"] < nlpd["prior"] < nlpd["NPE, cheap rows"]
    # the larger part of the gain is the recipe's, the rest the cheap simulator's
    gain, error = values(r"beside shuffled ones: ([+-][\d.]+) ± ([\d.]+)", text)
    assert gain > 5 * error
    assert gain < nlpd["NPE, dear rows"] - nlpd["MLNPE, shuffled"]
    # training knew of the gain, though a probe of cheap rows as they are saw none
    gain, error = values(r"log score ([+-][\d.]+) ± ([\d.]+)", text)
    assert gain > 5 * error
    assert "an affine map of each summary does not mend" in text
    gain, error = values(r"the same shuffled: ([+-][\d.]+) ± ([\d.]+)", text)
    assert gain > 3 * error
    # calibrated but for one parameter
    p_values = re.search(r"SBC p-values (.+)", text)[1].split(", ")
    assert [float(p) > 0.01 for p in p_values] == [True, True, False]
    area, error = values(r"TARP area (-?[\d.]+), expected 0 ± ([\d.]+)", text)
    assert abs(area) < 2 * error


def one_observation(text):
    sharp, wide = text.split("\nsharp\n")[1].split("\nwide\n")
    sharp, wide = scores(sharp, "KL"), scores(wide, "KL")
    # rounds pay where the posterior is small, and not beside the default where not
    assert sharp["MFTSNPE"] < min(sharp["MFNPE"], sharp["MLNPE"]) - 0.3
    assert abs(sharp["MLNPE"] - sharp["MFNPE"]) < 0.2
    assert max(wide["MLNPE"], wide["MFTSNPE"]) < wide["MFNPE"] - 0.3
    assert abs(wide["MLNPE"] - wide["MFTSNPE"]) < 0.2
    for name in ("sharp", "wide"):
        (share,) = values(rf"^{name}: 99.9 % of the posterior lie in ([\d.]+)%", text)
        assert (share < 1) == (name == "sharp")
    assert sharp["cheap rows alone"] > 5 * sharp["MFNPE"]
    assert values(r"^MFTSNPE: (\d) of 8 measurements", text) == (8,)
    assert values(r"^cheap rows alone: (\d) of 8 measurements", text) < (5,)


def images(text):
    nlpd = scores(text)
    # coarse images count, and not only the recipe; dear ones alone are few
    assert nlpd["MLNPE"] < nlpd["MFNPE"] < nlpd["MLNPE, shuffled"]
    alone = nlpd["NPE"], nlpd["NPE, ensemble"]
    assert nlpd["MLNPE, shuffled"] < min(alone) < max(alone) < nlpd["prior"]
    # maps mend little
    cheap, shift, paired = map(float, re.findall(r"off by ([\d.]+)", text))
    assert cheap > shift > paired > 0.5 * cheap


def bad_low_fidelity(text):
    # the report finds what is useless or reversed
    parts = re.split(r"^--- (\w+)$", text, flags=re.M)
    reports = dict(zip(parts[1:9:2], parts[2:9:2]))
    assert "tells nothing about level 1" in reports["useless"]
    assert "misreads" in reports["reversed"] and "(reversing 1)" in reports["reversed"]
    for name in ("healthy", "unpaired"):
        assert re.search("tells (something|much)", reports[name])
        assert "misreads" not in reports[name]
    # the summary after training does not: every cheap level seems to be worth a lot
    said = re.findall(r"log score ([+-][\d.]+) ± ([\d.]+)", text)
    assert len(said) == 4
    assert all(float(gain) > 3 * float(error) for gain, error in said)
    # but its last line does: the outputs of the useless one tell nothing
    told = re.findall(r"the same shuffled: ([+-][\d.]+) ± ([\d.]+)", text)
    told = dict(zip(reports, [float(gain) / float(error) for gain, error in told]))
    assert told["healthy"] >= 2 > told["useless"]
    # none does harm, and a useless one is nearly as good as a healthy one
    found = re.findall(r"^(\w+) +NLPD .+, gain ([+-][\d.]+)", text, flags=re.M)
    gains = {name: float(gain) for name, gain in found}
    assert len(gains) == 4 and min(gains.values()) > 0
    assert 0 < gains["healthy"] - gains["useless"] < 0.3
    assert gains["unpaired"] < gains["useless"]


def camels(text):
    nlpd = scores(text)
    mine, prior = nlpd["MLNPE, 980 + 20 rows"], nlpd["prior"]
    assert mine < nlpd["NPE, 500 dear rows"] < prior
    assert prior < nlpd["NPE, 980 cheap rows"] < nlpd["NPE, 20 dear rows"]
    # most of it is caution, but not all
    gain, error = values(r"beside shuffled ones: ([+-][\d.]+) ± ([\d.]+)", text)
    assert gain > 3 * error
    assert mine < nlpd["MLNPE, shuffled"] < prior
    # twenty rows cannot tell that cheap ones help
    gain, error = values(r"log score ([+-][\d.]+) ± ([\d.]+)", text)
    assert abs(gain) < 2 * error
    areas = re.findall(r"TARP area (-?[\d.]+), expected 0 ± ([\d.]+)", text)
    (hybrid, error), (plain, _) = [tuple(map(float, each)) for each in areas]
    assert abs(hybrid) < 2 * error and plain < -5 * error


def gallery(text):
    # the picture of the hybrid: an arrow, and only networks with lower levels
    assert "high-fidelity rows count as many more than there are" in text
    assert "high fidelity alone: weight" not in text
    # a little too wide in the first parameter, which L-C2ST does not see
    p_values = re.search(r"SBC p-values (.+)", text)[1].split(", ")
    assert [float(p) > 0.01 for p in p_values] == [False, True]
    area, error = values(r"TARP area (-?[\d.]+), expected 0 ± ([\d.]+)", text)
    assert area > 2 * error
    (p_value,) = values(r"L-C2ST p-value ([\d.]+)", text)
    assert p_value > 0.05


# what every run must print, whatever the number of rows and epochs


def any_start_here(text):
    assert "Level 1 with level 0: paired:" in text


def any_own_simulator(text):
    ways = re.findall(r"^Level 1 with level 0: (paired|not paired)", text, flags=re.M)
    assert ways == ["paired"] * 3  # many rows, a seed, a program
    found = dict(re.findall(r"^(.+): Level 1 with level 0: (.+)$", text, flags=re.M))
    assert found["other draws"].startswith("not paired")
    signs = {"own numbers": "draws randomness of its own: level 1"}
    signs["the batch"] = "rows depend on their batch: a row of level 1"
    for mistake, sign in signs.items():
        assert found[mistake].startswith(sign) and "As it is: paired" in found[mistake]
    # what fails and what is NaN is dropped, and said
    asked, got = values(r"asked for \(\d+, (\d+)\) got \(\d+, (\d+)\)", text)
    assert got < asked
    assert "failed and were left out" in text and "NaN or inf" in text


def any_bad_low_fidelity(text):
    found = dict(re.findall(r"^(\w+): Level 1 with level 0: (.+)$", text, flags=re.M))
    assert found["healthy"].startswith("paired: the correlation given theta is 0.")
    assert found["reversed"].startswith("paired: the correlation given theta is -0.")
    assert found["useless"].startswith("not paired")
    assert found["unpaired"].startswith("draws randomness of its own: level 0")


def any_one_observation(text):
    shares = re.findall(r"that is left, by round: ([\d., ]+)", text)
    assert len(shares) >= 2
    for share in shares:  # four rounds, the first from the whole prior
        share = list(map(float, share.split(", ")))
        assert len(share) == 4 and share[0] == 1 and min(share) > 0


def any_images(text):
    assert len(re.findall(r"off by [\d.]+ \(root mean square\)", text)) == 3


def any_gallery(text):
    assert len(re.findall(r"SBC p-values|TARP area|L-C2ST p-value", text)) == 3


def any_camels(text):
    assert "rows (980, 20) test rows 980" in text


CLAIMS = {
    "bad_low_fidelity": bad_low_fidelity,
    "budget": budget,
    "camels": camels,
    "gallery": gallery,
    "images": images,
    "one_observation": one_observation,
    "start_here": start_here,
    "toggle_switch": toggle_switch,
    "transfer": transfer,
}
ALWAYS = {
    "bad_low_fidelity": any_bad_low_fidelity,
    "camels": any_camels,
    "gallery": any_gallery,
    "images": any_images,
    "one_observation": any_one_observation,
    "own_simulator": any_own_simulator,
    "start_here": any_start_here,
}


def check(name, text, is_full):
    """Assert what the text of a tutorial claims of its outputs."""
    if name in ALWAYS:
        ALWAYS[name](text)
    if is_full and name in CLAIMS:
        CLAIMS[name](text)


# what sbi draws of posteriors and trainings of this package
PICTURES_OF_SBI = (
    "pairplot",
    "plot_summary",
    "plot_tarp",
    "pp_plot_lc2st",
    "sbc_rank_plot",
)

# ---------------------------------------------------------------------------- tests


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path, monkeypatch):
    notebook = execute(name, tmp_path, monkeypatch)
    check(name, printed(notebook), is_full=not has_fast_mode(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_text_says_what_the_outputs_say(name):
    assert name in CLAIMS or name in ALWAYS
    check(name, printed(committed(name)), is_full=True)


# in the older tutorials some numbers of the text are from runs that are not shown
@pytest.mark.parametrize("name", [name for name in NAMES if has_fast_mode(name)])
def test_numbers_in_the_text_are_those_of_outputs_or_code(name):
    notebook = committed(name)
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    known = numbers(printed(notebook)) | numbers(code)
    text = re.sub(r"arXiv:[\d.]+|arxiv.org/abs/[\d.]+", "", prose(notebook))
    assert numbers(text) <= known


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_of_one_full_run_and_name_no_files(name):
    notebook = committed(name)
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not re.search(r"site-packages|/home/|/tmp/|/root/|/Users/", text)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    if has_fast_mode(name):
        assert counts == list(range(1, len(cells) + 1))  # top to bottom
        lines = [line for cell in cells for line in cell.source.splitlines()]
        assert sum(FAST in line for line in lines) == 1  # one line decides
    assert any(cell.outputs for cell in cells)
    assert not any(out.output_type == "error" for c in cells for out in c.outputs)


def test_the_core_of_the_first_tutorial_is_short():
    cells = committed("start_here").cells
    core = [c.source for c in cells if "core" in c.metadata.get("tags", [])]
    lines = [line for source in core for line in source.splitlines() if line.strip()]
    assert 10 <= len(lines) < 20


def test_the_gallery_has_every_picture():
    cells = [c for c in committed("gallery").cells if c.cell_type == "code"]
    drawing = [*plots.__all__, *PICTURES_OF_SBI, "plot_forest"]
    for name in drawing:
        calls = [c for c in cells if re.search(rf"\b{name}\(", c.source)]
        assert calls, name
        for cell in calls:
            data = [out.get("data", {}) for out in cell.outputs]
            assert any("image/png" in each for each in data), name
    # each recipe, and axes of one's own
    code = "\n".join(cell.source for cell in cells)
    for name in ("multilevel", "transfer", "inference"):
        assert f"\nplot_training({name})" in code
    assert "ax=right" in code and "axes=part" in code


def test_the_gallery_is_no_tutorial_but_an_entry_of_the_site():
    written = pages.pages()
    assert "tutorials/gallery.ipynb" in written
    assert "gallery" not in written["tutorials/index.rst"]
    entries = (pages.DOCS / "index.md").read_text("utf-8").splitlines()
    assert "tutorials/gallery" in entries
