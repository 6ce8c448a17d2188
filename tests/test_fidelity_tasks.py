"""Diagnostics of benchmark tasks agree with the results of training."""

import pytest

from sbi_multilevel.diagnostics import check_pairing, fidelity_report
from sbi_multilevel_benchmarks import get_task


def pairing(name):
    task = get_task(name)
    return check_pairing(
        task.simulators, task.prior, task.noise, costs=task.costs, num_simulations=200
    )


@pytest.mark.parametrize("name", ("g-and-k", "ou2-delta0.1", "slcp"))
def test_tasks_with_shared_noise_are_paired(name):
    assert pairing(name).is_paired


@pytest.mark.parametrize("name", ("g-and-k-useless", "ou-useless", "ou2-useless"))
def test_tasks_without_shared_noise_are_not_paired(name):
    report = pairing(name)
    assert not report.is_paired
    assert "not paired: no shared noise detected" in report.verdicts[0]


def test_reversed_time_is_reported_as_another_order():
    report = pairing("ou2-delta1-reversed")
    assert not report.is_paired
    assert "summary 9 matches 0 of level 0" in report.verdicts[0]
    assert report.levels[0].shared.counterpart.tolist()[5:] == [4, 3, 2, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    (
        ("g-and-k", "high"),
        ("ou2", "high"),
        ("ou2-delta0.1", "high"),
        ("ou", "moderate"),
        ("ou2-delta1", "moderate"),
        ("ou2-delta1-reversed", "moderate"),
        ("g-and-k-useless", "none"),
        ("ou-useless", "none"),
        ("ou2-useless", "none"),
    ),
)
def test_informativeness_of_tasks(name, expected):
    sims = get_task(name).simulate((10_000, 100), seed=0)
    assert fidelity_report(sims).levels[0].informativeness == expected
