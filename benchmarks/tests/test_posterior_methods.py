"""Methods on tasks that evaluate posteriors."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sbi.inference import NLE, NPE
from sbi.neural_nets import posterior_nn

from sbi_multilevel import MFTSNPE, Acquisition
from sbi_multilevel.methods.sequential.truncation import Truncation
from sbi_multilevel_benchmarks import __main__ as command_line
from sbi_multilevel_benchmarks import posterior_task
from sbi_multilevel_benchmarks.fit import Mixture
from sbi_multilevel_benchmarks.journal import read_records
from sbi_multilevel_benchmarks.methods import per_observation, pfn, transfer
from sbi_multilevel_benchmarks.registry import METHODS, TASKS, get_task
from sbi_multilevel_benchmarks.run import Run, check_method, fit, run_all, run_one
from sbi_multilevel_benchmarks.tasks.ou_transfer import OUTransfer

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")
COUNTS = (60, 20)
POINTWISE = {"c2st", "mmd", "nltp", "nrmse"}
TRAINED = [m for m in METHODS if m != "npe-pfn"]  # which needs weights
RUNS_ON_POSTERIORS = [m for m in TRAINED if not m.startswith("ml-paper")]
PER_OBSERVATION = [m for m in TRAINED if hasattr(METHODS[m], "needs_observations")]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small networks, trained for two epochs, evaluated fast; an empty cache."""

    def build_network(task):
        options = dict(num_transforms=1, hidden_features=8, num_bins=3)
        free = dict(z_score_theta="transform_to_unconstrained", x_dist=task.prior)
        return posterior_nn("zuko_nsf", **options, **free)

    def briefly(train):
        def train_briefly(trainer, *args, **options):
            return train(trainer, *args, **{**options, "max_num_epochs": 2})

        return train_briefly

    def two_rounds(*args, **options):
        few = {**options, "truncation": Truncation(num_samples=500)}
        return MFTSNPE(*args, **few)

    def fast_c2st(samples, exact):
        return torch.tensor(0.5)

    monkeypatch.setattr(OUTransfer, "build_network", build_network)
    monkeypatch.setattr(OUTransfer, "num_samples", 60)
    monkeypatch.setattr(OUTransfer, "oracle_size", 50)
    monkeypatch.setattr(posterior_task, "c2st", fast_c2st)
    monkeypatch.setattr(posterior_task, "calibration", lambda *given: {"sbc": [1.0]})
    monkeypatch.setattr(NPE, "train", briefly(NPE.train))
    monkeypatch.setattr(NLE, "train", briefly(NLE.train))
    monkeypatch.setattr(per_observation, "NUM_ROUNDS", 2)
    monkeypatch.setattr(per_observation, "MFTSNPE", two_rounds)
    transfer.pretrain.cache_clear()


def _run(method, counts=COUNTS, seed=0, observations=2):
    return Run("ou2", method, counts, seed, observations=observations)


def _without_seconds(records):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


# ------------------------------------------------------------- methods


def _slow_if_variant(method):
    """Variants of the hybrid differ in a setting and train as many networks."""
    is_variant = method.startswith("hybrid-")
    return pytest.param(method, marks=pytest.mark.slow) if is_variant else method


@pytest.mark.parametrize("method", map(_slow_if_variant, RUNS_ON_POSTERIORS))
def test_every_method_runs_on_a_posterior_task(method):
    record = run_one(_run(method))
    metrics = record["metrics"]
    wanted = POINTWISE - ({"nltp"} if method == "mf-abc" else set())
    # of one observation only: nothing to calibrate
    wanted |= set() if method in PER_OBSERVATION else {"sbc"}
    assert set(metrics) == wanted
    assert all(np.isfinite(values["mean"]) for values in metrics.values())
    assert record["observations"] == 2


def test_networks_are_pretrained_once_for_all_methods_and_numbers():
    for counts in (COUNTS, (60, 30)):
        for method in ("mf-ensemble", "mf", "mf-unaligned", "mf-tsnpe-af"):
            run_one(_run(method, counts))
    assert transfer.pretrain.cache_info().misses == 5
    run_one(_run("mf", seed=1))
    assert transfer.pretrain.cache_info().misses == 6


@pytest.mark.parametrize("method", ["mf", "mf-ensemble", "mf-tsnpe"])
def test_a_cached_network_changes_no_result(method):
    first = run_one(_run(method))
    again = run_one(_run(method))
    transfer.pretrain.cache_clear()
    without = run_one(_run(method))
    records = _without_seconds([first, again, without])
    assert records[0] == records[1] == records[2]
    # two epochs of pre-training, two of fine-tuning; a warm start may stop at once
    assert first["epochs"] >= 2


def test_seconds_include_pretraining_of_earlier_runs():
    task = get_task("ou2")
    fits = [fit("mf", task, COUNTS, seed=0) for _ in range(2)]
    data = transfer.PretrainingData("ou2", COUNTS[0], 0, task, None)
    pretraining = transfer.pretrain(data, 0).seconds
    assert fits[0].seconds_before == 0
    assert fits[1].seconds_before == pytest.approx(pretraining, rel=0.05)


def test_a_single_network_is_the_first_of_the_ensemble():
    task = get_task("ou2")
    alone, ensemble = (
        fit(method, task, COUNTS, 0).evaluated for method in ("mf", "mf-ensemble")
    )
    theta, x = task.true_theta[:1], task.observations[:1]
    values = [p.log_prob(theta, x=x) for p in (alone, *ensemble.posteriors)]
    assert torch.equal(values[0], values[1])
    assert len({value.item() for value in values}) == 5


def test_rounds_run_once_for_each_observation(monkeypatch):
    seen = []
    run = per_observation.RoundsPosterior._run

    def counted(posterior, x):
        seen.append(x)
        return run(posterior, x)

    monkeypatch.setattr(per_observation.RoundsPosterior, "_run", counted)
    run_one(_run("mf-tsnpe"))
    assert torch.equal(torch.cat(seen), get_task("ou2").observations[:2])


def test_settings_of_rounds_are_those_of_the_records_or_of_the_paper():
    """Settings of the names in the records do not change with defaults of `MFTSNPE`."""
    recorded, paper = (METHODS[f"mf-tsnpe-af{end}"] for end in ("", "-paper"))
    assert recorded.acquisition == Acquisition(
        share=0.2, pool_size=250, first_round=False, fixed_pool=False
    )
    assert paper.acquisition == Acquisition()
    gain = METHODS["mf-tsnpe-af-gain"].acquisition
    assert gain == replace(recorded.acquisition, on="gain")
    for method, num_networks in (("mf-tsnpe-af-paper", 1), ("mf-tsnpe-af", 5)):
        run_one(_run(method))
        assert transfer.pretrain.cache_info().misses == num_networks


def test_a_mixture_is_the_mean_density():
    class Normal:
        def __init__(self, mean):
            self._normal = torch.distributions.Normal(mean, 1.0)

        def log_prob(self, input, condition):
            return self._normal.log_prob(input)[..., 0]

        def sample(self, sample_shape, condition):
            return self._normal.sample((*sample_shape, len(condition), 1))

    members = (Normal(-9.0), Normal(9.0))
    mixture = Mixture(members)
    x, condition = torch.zeros(3, 2, 1) + 8, torch.zeros(2, 1)
    densities = [member.log_prob(x, condition).exp() for member in members]
    mean = (densities[0] + densities[1]) / 2
    assert torch.allclose(mixture.log_prob(x, condition).exp(), mean)
    samples = mixture.sample((2_000,), condition)
    assert samples.shape == (2_000, 2, 1)
    assert (samples > 0).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_transfer_uses_all_levels_of_a_likelihood_task():
    task = get_task("toggle-switch")
    task.num_test, task.num_samples = 3, 20
    sims = task.simulate((60, 20, 10), seed=0)
    trainer = transfer.build_trainer(task, transfer.TransferConfig())
    trainer = transfer.append_unpaired(trainer, list(sims)[1:])
    assert [len(x) for x in trainer._x_roundwise] == [20, 10]
    result = fit("mf-ensemble", task, (60, 20, 10), seed=0)
    assert np.isfinite(task.evaluate(result.evaluated, None)["mmd_squared"]).all()


# ------------------------------------------------------------- what cannot run


@pytest.mark.parametrize("method", PER_OBSERVATION)
@pytest.mark.parametrize("task", ["g-and-k", "ou"])
def test_methods_per_observation_need_observations(method, task):
    with pytest.raises(ValueError, match=f"method='{method}' infers one"):
        fit(method, get_task(task), COUNTS, seed=0)


def test_methods_of_the_reference_code_need_its_settings():
    with pytest.raises(ValueError, match="Choose 'ml'"):
        check_method("ml-paper", get_task("ou2"))


@pytest.mark.parametrize("task, observations", [("ou2", 1), ("ou", 2)])
def test_observations_are_two_or_more_of_a_posterior_task(task, observations):
    run = Run(task, "mf", COUNTS, 0, observations=observations)
    with pytest.raises(ValueError, match="must be at least 2"):
        run.build_task()


# ------------------------------------------------------------- running


def _stub_run_one(run):
    return {
        "task": run.task,
        "method": run.method,
        "num_simulations": run.num_simulations,
        "seed": run.seed,
        "seconds": 1.0,
    }


def test_runs_with_the_same_simulations_of_level_0_follow_each_other(monkeypatch):
    runs = [
        _run(method, counts, seed)
        for counts in ((60, 20), (60, 30), (80, 20))
        for method in ("high", "mf")
        for seed in (0, 1)
    ]
    monkeypatch.setattr("sbi_multilevel_benchmarks.run.run_one", _stub_run_one)
    records = list(run_all(runs))
    assert all(_stub_run_one(run) in records for run in runs)
    order = [(r["num_simulations"][0], r["seed"]) for r in records]
    groups = [(60, 0)] * 4 + [(60, 1)] * 4 + [(80, 0)] * 2 + [(80, 1)] * 2
    assert order == groups


@pytest.mark.parametrize("name", list(TASKS))
def test_the_command_line_knows_all_tasks_and_methods(name, monkeypatch):
    runs = []
    monkeypatch.setattr(Run, "build_task", lambda run: None)
    monkeypatch.setattr(
        command_line, "run_all", lambda given, *_: runs.extend(given) or []
    )
    options = [
        "--num-simulations",
        "60,20",
        "--data",
        "some.npz",
        "--observations",
        "3",
    ]
    command_line.main([name, *options, "--methods", *TRAINED, "--seeds", "1"])
    assert [run.method for run in runs] == TRAINED
    assert {(run.task, run.data, run.observations) for run in runs} == {
        (name, "some.npz", 3)
    }


def test_the_command_line_evaluates_posteriors(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    numbers = ["--num-simulations", "60,20", "60,30", "--observations", "2"]
    options = ["--methods", "mf", "mf-abc", "--seeds", "1", "--out", str(out)]
    command_line.main(["ou2", *numbers, *options])
    records = read_records(out)
    assert [r["method"] for r in records] == ["mf", "mf-abc"] * 2
    assert [r["runs"] for r in records] == [[60, 20]] * 2 + [[60, 30]] * 2
    lines, _ = capsys.readouterr().out.split("| task")
    assert [json.loads(line) for line in lines.splitlines()] == records


def test_a_method_that_cannot_run_is_skipped_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(pfn, "find_spec", lambda name: None)
    command_line.main(["ou3", "--methods", "npe-pfn", "--seeds", "1"])
    assert "npe-pfn is skipped: the package tabpfn" in capsys.readouterr().err
