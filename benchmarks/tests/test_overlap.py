"""Pairs that share a part of their noise, and the command that trains on them."""

import json
import math

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform
from scipy import stats

from sbi_multilevel_benchmarks import overlap, registry
from sbi_multilevel_benchmarks.fit import Fit
from sbi_multilevel_benchmarks.overlap import OverlapRun, overlap_table, variances
from sbi_multilevel_benchmarks.partial_pairs import (
    PairNoise,
    UnpairedConfig,
    fit_unpaired,
    simulate_overlapping,
    simulate_unpaired,
)
from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.task import BenchmarkTask

COUNTS = {"g-and-k": (20, 400), "toggle-switch": (20, 30, 40), "heat": (20, 400)}
SHARES = (0.0, 0.3, 1.0)


class Shifted(BenchmarkTask):
    """x is theta plus noise, and theta plus twice the noise."""

    name, family, metric = "shifted", "nle", "gap"
    num_simulations = (6, 4)
    costs = (1.0, 10.0)
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    simulators = (
        lambda theta, noise: theta + noise,
        lambda theta, noise: theta + 2 * noise,
    )

    @staticmethod
    def noise(n, generator):
        return torch.randn(n, 1, generator=generator)

    def build_network(self):
        raise NotImplementedError

    def evaluate(self, estimator, trained_on):
        return {"gap": [float(trained_on.mean())]}


class Linear:
    """A density whose loss is x."""

    def log_prob(self, x, condition):
        return -x[..., 0]


# ------------------------------------------------------------- noise


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_noise_keeps_its_distribution_and_is_correlated_by_the_share(kind, share):
    draw = torch.rand if kind == "uniform" else torch.randn
    noise = PairNoise(lambda n, generator: draw(n, 3, generator=generator), share)
    fine, coarse = noise(20_000, torch.Generator().manual_seed(0))
    exact = stats.uniform if kind == "uniform" else stats.norm
    for side in (fine, coarse):
        assert stats.kstest(side.flatten().numpy(), exact.cdf).pvalue > 1e-3
    both = np.corrcoef(torch.cat((fine, coarse), dim=1).T)
    # a component with the same one of the other side, and with no others
    error = 5 / 20_000**0.5
    assert np.abs(np.diag(both[:3, 3:]) - share).max() < error
    assert np.abs(both[:3, 3:] - np.diag(np.diag(both[:3, 3:]))).max() < error
    assert (fine == coarse).float().mean().item() == pytest.approx(share, abs=0.01)


def test_what_a_small_share_has_in_common_a_larger_one_has_too():
    def same(share):
        noise = PairNoise(get_task("g-and-k").noise, share)
        fine, coarse = noise(500, torch.Generator().manual_seed(3))
        return fine == coarse

    assert (same(0.6) | ~same(0.2)).all() and same(0.6).sum() > same(0.2).sum()


# ------------------------------------------------------------- simulations


@pytest.mark.parametrize("name", COUNTS)
def test_a_full_share_gives_the_simulations_of_the_task(name):
    task = get_task(name)
    for ours, theirs in zip(
        simulate_overlapping(task, COUNTS[name], 1, 1.0), task.simulate(COUNTS[name], 1)
    ):
        assert torch.equal(ours.theta, theirs.theta) and torch.equal(ours.x, theirs.x)
        if ours.level > 0:
            assert torch.equal(ours.x_coarse, theirs.x_coarse)


@pytest.mark.parametrize("name", COUNTS)
def test_the_share_changes_the_coarse_side_only_and_not_its_distribution(name):
    task = get_task(name)
    full, none, half = (
        simulate_overlapping(task, COUNTS[name], 1, share) for share in (1.0, 0.0, 0.5)
    )
    for a, b, c in zip(full, none, half):
        assert torch.equal(a.theta, b.theta) and torch.equal(a.x, b.x)
        assert torch.equal(a.x, c.x)
    # independent simulations at other shares, feature by feature
    other = simulate_overlapping(task, COUNTS[name], 2, 1.0)
    for level in range(1, len(COUNTS[name])):
        for share in (none, half):
            ours, theirs = share[level].x_coarse, other[level].x_coarse
            assert ours is not None and theirs is not None
            values = [stats.ks_2samp(a, b).pvalue for a, b in zip(ours.T, theirs.T)]
            assert min(values) > 1e-3 / len(values)


def test_sides_are_the_more_correlated_the_more_they_share():
    task = get_task("heat")

    def residuals(share):
        """Errors of the sensors on both sides."""
        pairs = simulate_overlapping(task, (2, 400), 1, share)[1]
        high, low = task.simulators[1], task.simulators[0]
        quiet = torch.zeros(1, 15)
        return (
            (pairs.x - high(pairs.theta, quiet)).flatten(),
            (pairs.x_coarse - low(pairs.theta, quiet)).flatten(),
        )

    for share in (0.0, 0.25, 0.75, 1.0):
        correlation = np.corrcoef(*residuals(share))[0, 1]
        assert correlation == pytest.approx(share, abs=5 / 6_000**0.5)


def test_invalid_shares_and_tasks_raise():
    task = Shifted()
    with pytest.raises(ValueError, match=r"share=1.5 must be in \[0, 1\]"):
        simulate_overlapping(task, (5, 5), 0, 1.5)
    with pytest.raises(ValueError, match="task='ou-reverse' has pairs of its own"):
        simulate_overlapping(get_task("ou-reverse"), (5, 5), 0, 0.5)


# ------------------------------------------------------------- variances, unpaired


@pytest.mark.filterwarnings("ignore:The pairing of level 1 looks broken")
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, None])
def test_the_variance_of_a_correction_falls_by_the_covariance(share):
    """The loss is theta + 2 u, less theta + u': 5 - 4 rho with rho in common."""
    found = variances(Shifted(), Linear(), share, seed=0)
    apart = 5 + 2 / 12  # and the variance of theta on each side
    exact = apart if share is None else 5 - 4 * share
    # relative to the error of a variance of 500 normal values
    assert found["variance"][0] == pytest.approx(exact, rel=6 * (2 / 500) ** 0.5)
    assert found["variance_apart"][0] == pytest.approx(apart, rel=6 * (2 / 500) ** 0.5)


def test_unpaired_simulations_have_a_theta_for_each_side():
    task = get_task("toggle-switch")
    counts = COUNTS[task.name]
    sims = simulate_unpaired(task, counts, 1)
    assert sims.num_simulations == (20, 30, 30, 40, 40)
    fine, coarse = task.simulate(counts, 1), task.simulate(counts, 1 + 500_000)
    assert torch.equal(sims[0].x, fine[0].x)
    for level in (1, 2):
        assert torch.equal(sims[2 * level - 1].x, coarse[level].x_coarse)
        assert torch.equal(sims[2 * level - 1].theta, coarse[level].theta)
        assert torch.equal(sims[2 * level].x, fine[level].x)
        assert torch.equal(sims[2 * level].theta, fine[level].theta)
        assert not torch.isin(sims[2 * level - 1].theta, fine[level].theta).any()
    (stage,) = UnpairedConfig(stopping="telescoping").stages(5)
    signs = [(term.level, term.weight) for term in stage.terms]
    assert signs == [(0, 1.0), (2, 1.0), (1, -1.0), (4, 1.0), (3, -1.0)]


def test_unpaired_simulations_can_be_trained_on():
    task = get_task("g-and-k")
    result = fit_unpaired(task, (100, 30), seed=0)
    assert result.runs == (130, 30) and result.num_epochs > 0
    value = result.evaluated.log_prob(result.trained_on[None, :5], torch.ones(5, 4))
    assert torch.isfinite(value).all()


# ------------------------------------------------------------- command


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs the command on a task and a method that take no time."""
    runs = []

    def average(task, simulations, seed):
        runs.append(simulations)
        return Fit(Linear(), simulations[-1].x_coarse, 1)

    def unpaired(task, counts, seed):
        runs.append(counts)
        return Fit(Linear(), torch.ones(3, 1), 1, runs=(10, 4))

    monkeypatch.setitem(registry.TASKS, "shifted", lambda data: Shifted())
    monkeypatch.setitem(registry.METHODS, "average", average)
    monkeypatch.setattr(overlap, "fit_unpaired", unpaired)
    path = tmp_path / "overlap.jsonl"

    def run(*words):
        given = ["--tasks", "shifted", "--methods", "average", *words]
        overlap.main([*given, "--seeds", "2", "--out", str(path)])
        lines = path.read_text().splitlines()
        return [json.loads(line) for line in lines], runs

    return run


def test_the_command_writes_records_and_repeats_none(command, capsys, tmp_path):
    records, runs = command("--shares", "0", "0.5", "--unpaired")
    assert len(runs) == 6
    found = [(r["approach"], r["share"], r["seed"]) for r in records]
    expected = [("average", share, seed) for share in (0.0, 0.5) for seed in (0, 1)]
    assert sorted(found[:4]) == expected
    assert found[4:] == [("ml-unpaired", None, 0), ("ml-unpaired", None, 1)]
    for record in records:
        assert record["runs"] == [10, 4] and record["cost"] == 50
        assert record["variance"][0] > 0 and record["num_simulations"] == [6, 4]
        assert "method" not in record and str(tmp_path) not in record["command"]
    header = "| task | simulations | approach | metric | 0% | 50% | unpaired |"
    assert header in capsys.readouterr().out
    records, runs = command("--shares", "0", "0.5", "1", "--unpaired")
    assert len(runs) == 8 and len(records) == 8
    capsys.readouterr()


def test_shares_that_are_none_raise_before_anything_is_run(command):
    with pytest.raises(ValueError, match="share=50.0 must be in"):
        command("--shares", "0", "50")
    with pytest.raises(ValueError, match="3 numbers"):
        command("--num-simulations", "5,5,5")


def test_the_table_has_the_mean_and_its_error_over_seeds():
    def record(share, seed, value):
        run = OverlapRun("shifted", "average", share, (6, 4), seed)
        metrics = {"gap": {"mean": value, "median": math.nan}}
        return {**run.identity, "metric": "gap", "metrics": metrics}

    records = [record(1.0, 0, 1.0), record(1.0, 1, 3.0), record(0.0, 0, 0.5)]
    records.append({**record(0.0, 1, 9.0), "error": "x"})
    del records[-1]["metrics"]
    table = overlap_table(records)
    assert table.header[4:] == ("0%", "100%")
    assert table.rows == (
        ("shifted", "6 + 4", "average", "gap", "0.500", "2.000 ± 1.000"),
    )
