"""On tasks of the benchmark, verdicts agree with what training measured."""

import pytest

from sbi_multilevel.diagnostics import check_pairing, fidelity_report
from sbi_multilevel.diagnostics.level_fidelity import MUCH, NOTHING, SOMETHING
from sbi_multilevel_benchmarks.tasks import get_task


def pairing(name):
    task = get_task(name)
    return check_pairing(
        task.simulators, task.prior, task.noise, costs=task.costs, num_simulations=200
    )


@pytest.mark.parametrize("name", ("g-and-k", "ou2-delta0.1", "slcp"))
def test_tasks_with_pairs(name):
    assert pairing(name).is_paired


@pytest.mark.parametrize("name", ("g-and-k-useless", "ou-useless", "ou2-useless"))
def test_tasks_without(name):
    report = pairing(name)
    assert not report.is_paired
    assert "not paired: no shared noise was seen" in report.verdicts[0]


def test_reversed_time_is_another_order():
    report = pairing("ou2-delta1-reversed")
    assert not report.is_paired
    assert "9 follows 0 of level 0" in report.verdicts[0]
    assert report.pairs[0].shared.counterpart.tolist()[5:] == [4, 3, 2, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tells"),
    (
        ("g-and-k", MUCH),
        ("ou2", MUCH),
        ("ou2-delta0.1", MUCH),
        ("ou", SOMETHING),
        ("ou2-delta1", SOMETHING),
        ("ou2-delta1-reversed", SOMETHING),
        ("g-and-k-useless", NOTHING),
        ("ou-useless", NOTHING),
        ("ou2-useless", NOTHING),
    ),
)
def test_verdicts(name, tells):
    rows = get_task(name).simulate((10_000, 100), seed=0)
    assert fidelity_report(rows).levels[0].tells == tells
