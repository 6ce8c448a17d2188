"""Simulations of a budget, on a task whose cost is a known function of theta."""

import json

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_multilevel_benchmarks import cost_aware
from sbi_multilevel_benchmarks.records import over_seeds


class Toy:
    """One parameter; a simulation costs between 1 and 100, its mean is 21.5."""

    name = "toy"
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    simulators = (lambda theta, noise: theta + noise, lambda theta, noise: theta)

    @staticmethod
    def noise(n, generator):
        return torch.randn(n, 1, generator=generator)

    @staticmethod
    def cost_of(theta, noise):
        return 100 ** theta[:, 0]

    def simulate_high(self, n, seed):
        theta = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed))
        return theta, theta


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The toy task, with 100 simulations."""
    torch.manual_seed(0)
    monkeypatch.setattr(cost_aware, "get_task", lambda name: Toy())
    monkeypatch.setattr(cost_aware, "_NUM_FULL", 100)
    cost_aware.mean_cost_of.cache_clear()


@pytest.mark.parametrize("method", cost_aware.METHODS)
def test_the_budget_is_spent_and_not_exceeded(method):
    draws = cost_aware.simulate(Toy(), method, 6_000.0, seed=1)
    assert 6_000 - 100 < draws.spent <= 6_000
    own = float(Toy.cost_of(draws.theta, None).sum())
    of_pilot = draws.spent - own
    assert of_pilot == pytest.approx(0 if method == "prior" else 50 * 21.5, abs=800)
    assert torch.equal(draws.x, draws.theta)


def test_a_proposal_has_more_simulations_and_weights():
    prior, proposal = (
        cost_aware.simulate(Toy(), method, 20_000.0, seed=1)
        for method in cost_aware.METHODS
    )
    assert len(proposal.x) > 1.2 * len(prior.x)
    assert prior.weights is None and proposal.weights.shape == (len(proposal.x),)
    # E[sqrt c]^2 / E[c]
    assert proposal.relative_cost == pytest.approx(0.71, abs=0.03)


def test_the_command_writes_records_once_and_prints_a_table(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    given = ["--tasks", "toy", "--budgets", "1", "--seeds", "2", "--output", str(path)]
    cost_aware.main(given)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["approach"] for r in records] == ["prior", "cost-aware"] * 2
    assert all(0.5 < record["spent"] <= 1 for record in records)
    gaps = [records[i + 1]["nltp"] - records[i]["nltp"] for i in (0, 2)]
    assert str(over_seeds(gaps)) in capsys.readouterr().out
    cost_aware.main(given)
    assert len(path.read_text().splitlines()) == 4
