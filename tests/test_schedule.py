"""Learning rates that rise and fall, and where a training with them ends."""

import math
import warnings

import pytest
import torch

from sbi_multilevel import MFNPE, MLNPE, MultilevelConfig, TransferConfig
from sbi_multilevel.training.schedule import Cycle, OneCycle, fine_tuning
from tests.linear_gaussian import SilentTracker, prior, simulations


def trainer(cls, config):
    torch.manual_seed(0)
    inference = cls(
        prior(),
        "mdn",
        config=config,
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    return inference.append_multilevel_simulations(simulations((200, 40, 40)))


def test_rates_rise_linearly_and_fall_as_a_cosine():
    cycle = OneCycle(rate=8.0, warm_up=0.25)
    factors = [cycle.factor(step, 100) for step in range(100)]
    assert factors[:25] == pytest.approx([8 * (k + 1) / 25 for k in range(25)])
    expected = [4 * (1 + math.cos(math.pi * (k - 24) / 75)) for k in range(25, 99)]
    assert factors[25:98] == pytest.approx(expected[:73], rel=1e-6)
    assert 0 < factors[99] <= factors[98] < 0.01


def test_a_step_has_the_rate_of_the_schedule_and_leaves_that_of_the_optimizer():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    cycle = Cycle(OneCycle(rate=2.0, warm_up=0.5), num_steps=4, epoch_size=2)
    for rate in (0.5, 1.0, 0.5, 1e-3):
        weight.grad = torch.ones(1)
        before = weight.item()
        cycle.step(optimizer)
        assert before - weight.item() == pytest.approx(rate, rel=1e-3)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_epochs_cover_the_steps_and_all_simulations():
    schedule = OneCycle(num_steps=100)
    assert Cycle.of(schedule, 7, 3, max_epochs=1_000).num_steps == 102
    assert Cycle.of(schedule, 500, 3, max_epochs=1_000).num_steps == 501
    cut = Cycle.of(schedule, 7, 3, max_epochs=10)
    assert cut.num_steps == 30 and cut.is_cut
    cut.begin_epoch(4)
    assert cut.index == 12 and not cut.is_finished(9) and cut.is_finished(10)


def test_a_warm_stage_has_the_cycle_of_fine_tuning():
    schedule = OneCycle(fine_tuning_steps=30, fine_tuning_rate=1.0)
    warm = fine_tuning(schedule)
    assert (warm.num_steps, warm.rate) == (30, 1.0)
    assert fine_tuning(None) is None
    stages = TransferConfig(schedule=schedule).stages(2)
    assert [stage.schedule for stage in stages] == [schedule, warm]
    (stage,) = MultilevelConfig(schedule=schedule).stages(2, is_pretrained=True)
    assert stage.schedule == warm


@pytest.mark.parametrize(
    "cls, config_type", [(MFNPE, TransferConfig), (MLNPE, MultilevelConfig)]
)
def test_training_ends_with_the_schedule(cls, config_type):
    schedule = OneCycle(num_steps=40, fine_tuning_steps=40)
    inference = trainer(cls, config_type(schedule=schedule))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        inference.train(training_batch_size=50)
    for stage in inference.summary["stages"]:
        assert stage["converged"]
    assert max(inference.summary["epochs_trained"]) <= 40


def test_a_limit_of_epochs_shortens_the_schedule_with_a_warning():
    inference = trainer(MFNPE, TransferConfig(schedule=OneCycle()))
    with pytest.warns(UserWarning, match="Maximum number of epochs"):
        inference.train(max_num_epochs=3)
    assert inference.summary["epochs_trained"] == [3, 3, 3]


def test_without_early_stopping_training_ends_with_the_schedule():
    config = TransferConfig(
        schedule=OneCycle(num_steps=10, fine_tuning_steps=10), early_stopping=False
    )
    inference = trainer(MFNPE, config)
    inference.train(max_num_epochs=500)
    assert max(inference.summary["epochs_trained"]) <= 10


@pytest.mark.parametrize(
    "settings",
    [{"num_steps": 0}, {"rate": -1.0}, {"warm_up": 1.0}, {"fine_tuning_rate": 0.0}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        OneCycle(**settings)


@pytest.mark.slow
def test_a_short_cycle_reaches_the_loss_of_many_epochs():
    losses = {}
    for name, schedule in (("cycle", OneCycle(num_steps=600)), ("constant", None)):
        torch.manual_seed(1)
        theta = torch.randn(4_000, 2)
        matrix = torch.tensor([[1.0, 0.5], [-0.5, 1.0]])
        x = theta @ matrix + 0.5 * torch.randn(4_000, 2)
        inference = MFNPE(
            torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            "maf",
            config=TransferConfig(schedule=schedule),
            tracker=SilentTracker(),
            show_progress_bars=False,
        ).append_lowfidelity_simulations(theta[:2_000], x[:2_000])
        network = inference.train()
        with torch.no_grad():
            losses[name] = network.loss(theta[2_000:], x[2_000:]).mean().item()
    assert losses["cycle"] < losses["constant"] + 0.05
