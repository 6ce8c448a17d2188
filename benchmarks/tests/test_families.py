"""The comparison of families, on a task whose posteriors are known."""

import json

import pytest
import torch

from sbi_multilevel_benchmarks import __main__ as command_line
from sbi_multilevel_benchmarks import families
from sbi_multilevel_benchmarks.families import (
    FamilyRun,
    LinearSimulator,
    exact_posterior,
    mean_divergence,
)


class ExactPosterior:
    """The exact posterior as a density, and as a ratio with a factor."""

    def log_prob(self, theta, condition):
        return exact_posterior(condition[0]).log_prob(theta[:, 0])[:, None]

    def __call__(self, theta, x):
        exact = exact_posterior(x[0]).log_prob(theta)
        return exact - families.prior().log_prob(theta) + 5.0


class ExactLikelihood:
    def log_prob(self, x, condition):
        mean = LinearSimulator(2)(condition, torch.zeros(2))
        return torch.distributions.Normal(mean, 0.5).log_prob(x[0]).sum(1)[None]


@pytest.mark.parametrize("family", ("NPE", "NRE"))
def test_the_exact_posterior_has_no_divergence(family):
    assert mean_divergence(ExactPosterior(), family) == pytest.approx(0, abs=0.02)


def test_the_exact_likelihood_has_no_divergence():
    assert mean_divergence(ExactLikelihood(), "NLE") == pytest.approx(0, abs=0.02)


def test_the_command_writes_records_and_repeats_none(tmp_path, monkeypatch, capsys):
    runs = []

    def run_family(run):
        runs.append(run)
        kl = 0.1 if run.method == "hybrid" else 0.4
        return {**run.identity, "num_simulations": [1], "kl": kl, "seconds": 1.0}

    def in_process(call, groups, num_workers):
        return (call(item) for group in groups for item in group)

    monkeypatch.setattr(families, "run_family", run_family)
    monkeypatch.setattr(families, "run_records", in_process)
    path = tmp_path / "families.jsonl"
    words = ["families", "--only", "NRE", "--methods", "plain", "hybrid"]
    words += ["--seeds", "2", "--out", str(path)]
    command_line.main(words)
    assert runs == [FamilyRun("NRE", m, s) for s in (0, 1) for m in ("plain", "hybrid")]
    assert "| 0.25 |" in capsys.readouterr().out
    command_line.main(words)
    assert len(runs) == 4
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(str(tmp_path) not in record["command"] for record in records)
