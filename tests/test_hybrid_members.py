"""Members of a hybrid: what they are trained on, and when they are trained again."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sbi.neural_nets import posterior_nn

from sbi_multilevel import (
    HybridNPE,
    LevelSimulations,
    MultilevelSimulations,
    OneCycle,
)
from sbi_multilevel.diagnostics import check_training
from sbi_multilevel.level_maps.base import LEVEL_MAPS, LevelMapKind, register_level_map
from sbi_multilevel.methods.hybrid import members as members_module
from sbi_multilevel.methods.hybrid import run as run_module
from sbi_multilevel.methods.hybrid.pool import LevelStep
from tests import linear_gaussian
from tests.hybrids import ALL_MAPS, BRIEF, QUICK, make, simulated, trained


def test_members_are_trained_on_the_pool_of_all_lower_levels(monkeypatch):
    seen = []
    original = run_module.train_members

    def spy(trainers, *args):
        seen.append([t.multilevel_simulations.num_simulations for t in trainers])
        return original(trainers, *args)

    monkeypatch.setattr(run_module, "train_members", spy)
    inference = HybridNPE(
        linear_gaussian.prior(), "mdn", config=QUICK, show_progress_bars=False
    ).append_multilevel_simulations(linear_gaussian.simulations((400, 60, 40)))
    inference.train(**BRIEF)
    # starts; members (high fidelity is another level) and networks alone
    pooled = [(460,), (460,)]
    assert seen == [pooled, [*pooled, (20,), (20,)]]
    inference.estimate_gain()
    assert seen[2:] == [[(10,), (10,)]]


def test_weights_depend_on_simulations_that_members_were_not_trained_on(monkeypatch):
    train, map_low = run_module.train_members, LevelStep.map_low
    seen_trainers, trained_on, mapped, steps = [], [], [], []

    def spy_on_training(trainers, folds, *args):
        members = train(trainers, folds, *args)
        trained_on.append([torch.cat(member._theta_roundwise) for member in members])
        return members

    def spy_on_maps(self, high, folds, unseen):
        mapped.append(torch.as_tensor(high.theta).float())
        return map_low(self, high, folds, unseen)

    def keep(self, step, original=members_module.MemberTrainer.pooled):
        seen_trainers.append(self)
        steps.append(step)
        return original(self, step)

    monkeypatch.setattr(run_module, "train_members", spy_on_training)
    monkeypatch.setattr(LevelStep, "map_low", spy_on_maps)
    monkeypatch.setattr(members_module.MemberTrainer, "pooled", keep)
    simulations = simulated(paired=False)
    make(simulations=simulations, config=replace(ALL_MAPS, num_members=3)).train(
        **BRIEF
    )

    theta, folds = simulations[1].theta, seen_trainers[0].folds
    assert sorted(np.concatenate(folds)) == list(range(20))
    starts, members = mapped[:2], mapped[2:]
    for index, fold in enumerate(folds):
        others = len(theta) - len(fold)
        # its map, the map of its start, the member, and the network alone
        assert len(members[index]) == others
        for seen in (members[index], starts[index % 2]):
            assert not torch.isin(theta[fold], seen).any()
        for component in (trained_on[1][:3], trained_on[1][3:]):
            assert not torch.isin(theta[fold], component[index]).any()
    # maps are scored, and selected, by the same folds
    (trainer,), (step,) = seen_trainers, steps
    again = trainer.selector.step(step.fitter.low, trainer.high, folds)
    assert len(again.scores) > 1
    for choice, expected in again.scores.items():
        assert np.array_equal(step.scores[choice].score, expected.score)


def nested():
    """Level 1 at parameters and noise of level 0; three simulations per theta."""
    low, high = simulated(n_high=20)
    theta = low.theta[:10].repeat(3, 1)
    x = torch.cat((high.x[:10], high.x[10:], high.x[:10] + 0.1))
    return MultilevelSimulations((low, LevelSimulations(1, theta, x)))


def test_simulations_at_held_out_parameters_are_not_trained_on(monkeypatch):
    train, trained_on, seen_trainers = run_module.train_members, [], []

    def spy(trainers, folds, *args):
        trained_on.append([
            torch.cat([level.theta for level in each.multilevel_simulations])
            for each in trainers
        ])
        return train(trainers, folds, *args)

    def keep(self, step, original=members_module.MemberTrainer.pooled):
        seen_trainers.append(self)
        return original(self, step)

    monkeypatch.setattr(run_module, "train_members", spy)
    monkeypatch.setattr(members_module.MemberTrainer, "pooled", keep)
    simulations = nested()
    make(simulations=simulations, config=replace(QUICK, num_members=3)).train(**BRIEF)
    starts, both = trained_on
    pooled, alone = both[:3], both[3:]
    for index, fold in enumerate(seen_trainers[0].folds):
        held_out = simulations[1].theta[fold]
        assert len(pooled[index]) == 200 - len(held_out.unique())
        for seen in (starts[index % 2], pooled[index], alone[index]):
            assert not torch.isin(held_out, seen).any()


def test_all_networks_have_the_settings_of_the_optimizer(monkeypatch):
    configs, original = [], members_module.MemberTrainer._member

    def spy(self, config):
        configs.append(config)
        return original(self, config)

    monkeypatch.setattr(members_module.MemberTrainer, "_member", spy)
    trained(config=replace(QUICK, betas=(0.5, 0.9), weight_decay=0.1))
    assert len(configs) == 6
    assert {(each.betas, each.weight_decay) for each in configs} == {((0.5, 0.9), 0.1)}
    assert sorted(each.rehearsal > 0 for each in configs) == [False] * 4 + [True] * 2


def test_too_few_simulations_for_members_are_an_error_before_training(monkeypatch):
    monkeypatch.setattr(run_module, "train_members", None)
    few = simulated(n_high=6, paired=False)
    with pytest.raises(ValueError, match="validation_fraction=0.4 and num_members=2 "):
        trained(simulations=few, options={"validation_fraction": 0.4})
    theta = few[1].theta[:1].expand(6, 1)
    repeated = LevelSimulations(1, theta, few[1].x)
    one = MultilevelSimulations((few[0], repeated))
    with pytest.raises(ValueError, match="at different theta"):
        trained(simulations=one)


def test_a_large_validation_fraction_is_possible():
    few = simulated(n_high=12)
    inference = trained(simulations=few, options={"validation_fraction": 0.5, **BRIEF})
    assert inference.estimate_gain().effective_sample_size is not None


def test_losses_that_are_not_finite_are_replaced():
    losses = torch.tensor([-torch.inf, torch.nan, torch.inf, 1.0])
    assert members_module._finite(losses).tolist() == [1e6, 1e6, 1e6, 1.0]


def test_trainings_of_members_are_kept_and_reported():
    inference = trained()
    runs = inference.hybrid_summary.runs
    members = ["member 1", "member 2"]
    assert list(runs["with lower levels"]) == ["start 1", "start 2", *members]
    assert list(runs["high fidelity alone"]) == members
    stages = runs["with lower levels"]["member 1"]
    assert [len(run.training_loss) for run in stages] == [2, 2]
    report = check_training(inference)
    assert report.verdict == "stopped at max epochs"
    assert "with lower levels, start 1 (level 0): the loss had not" not in str(report)
    reason = "the loss had not converged after 2 epochs. Increase max_num_epochs."
    number = len(report.verdicts)
    assert report.reasons[1:] == (f"{number} of {number} runs of members: {reason}",)
    healthy = trained(options={"learning_rate": 5e-3, "stop_after_epochs": 5})
    assert str(check_training(healthy)) == "Training: converged."


class Blind(torch.nn.Module):
    """An embedding that keeps nothing of x."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x):
        return 0 * self.layer(x)


@dataclass(frozen=True)
class SometimesBlind:
    """Builds networks, half of which do not see x, and writes down which."""

    log: Path

    def __call__(self, theta, x):
        is_blind = bool(torch.rand(()) < 0.5)
        with self.log.open("a") as file:
            file.write(f"{is_blind:d}\n")
        embedding = Blind() if is_blind else torch.nn.Linear(2, 2)
        return posterior_nn("mdn", z_score_x="none", embedding_net=embedding)(theta, x)


def test_a_start_that_learns_nothing_is_trained_again(tmp_path):
    schedule = OneCycle(num_steps=200, fine_tuning_steps=20)
    config = replace(QUICK, mix=False, level_maps=("none",), schedule=schedule)
    simulations = simulated(n_low=2_000)
    for seed in range(10):
        log = tmp_path / f"{seed}.txt"
        network = SometimesBlind(log)
        trainer = trained(
            HybridNPE, simulations, config, network, seed=seed, options={}
        )
        first = log.read_text().split()[:2]
        if sorted(first) == ["0", "1"]:
            break
    else:
        pytest.fail("no seed has one network of two that does not see x")
    runs = trainer.hybrid_summary.runs["with lower levels"]
    losses = [runs[f"start {i}"][-1].best_validation_loss for i in (1, 2)]
    # x determines theta up to noise: without it the loss is 0.8 nats higher
    assert abs(losses[0] - losses[1]) < 0.4


@pytest.fixture
def uneven_map():
    class Uneven(LevelMapKind):
        """Adds noise if it was fitted to an even number of simulations."""

        name = "uneven"

        def fit(self, low, high, seed):
            scale, draw = 3.0 * (len(high) % 2 == 0), np.random.default_rng(seed)
            return lambda theta, x: x + scale * draw.normal(size=x.shape)

    register_level_map(Uneven())
    yield "uneven"
    del LEVEL_MAPS["uneven"]


def test_starts_whose_pools_differ_are_not_trained_again(uneven_map, tmp_path):
    schedule = OneCycle(num_steps=100, fine_tuning_steps=10)
    config = replace(QUICK, mix=False, schedule=schedule)
    simulations = simulated(n_low=1_000, n_high=25)
    # the maps of the two starts are fitted to 12 and to 13 simulations
    numbers = []
    for kind in ("none", uneven_map):
        log = tmp_path / f"{kind}.txt"
        own = replace(config, level_maps=(kind,))
        trained(HybridNPE, simulations, own, Logged(log), options={})
        numbers.append(len(log.read_text()))
    assert numbers[0] == numbers[1]


@dataclass(frozen=True)
class Logged:
    """Builds networks, and writes down that it does."""

    log: Path

    def __call__(self, theta, x):
        with self.log.open("a") as file:
            file.write(".")
        return posterior_nn("mdn")(theta, x)


@pytest.mark.parametrize("distill", ("auto", False))
def test_members_that_fine_tuning_did_not_improve_are_one_network(distill):
    # with steps of this size, fine-tuning ends at the weights that it started from
    schedule = OneCycle(num_steps=20, fine_tuning_steps=5, fine_tuning_rate=1e4)
    config = replace(QUICK, num_members=5, mix=False, schedule=schedule)
    # too few to distill from
    mixture = trained(
        simulations=simulated(n_low=10, n_high=10, paired=False),
        config=replace(config, distill=distill),
        options={},
    )._neural_net
    # three members of the first start, and two of the second
    expected = [0.6, 0.4] if distill else [0.2] * 5
    torch.testing.assert_close(mixture.weights, torch.tensor(expected))
