"""What is logged in training: its formulas, that it is live, and that it is free."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.neural_nets import posterior_nn
from sbi.utils.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import Parameter
from torch.utils.tensorboard.writer import SummaryWriter

from sbi_multilevel import MFNPE, MLNPE, MultilevelConfig, TransferConfig
from sbi_multilevel.losses.gradients import (
    ADJUSTMENTS,
    adjusted_step,
    base_cosine,
    combine,
    level_norms,
    project,
)
from sbi_multilevel.losses.layers import LayerGradients
from sbi_multilevel.training.history import (
    control_variate,
    curve,
    effective_batch_size,
    estimate_variance,
    training_runs,
)
from sbi_multilevel.training.schedule import Term
from sbi_multilevel.training.tracking import StepRecorder, TermLosses
from tests.linear_gaussian import SilentTracker, prior, simulations
from tests.test_exactness import gradient_of, terms_by_hand
from tests.test_gradients import GRADIENTS

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")
NETWORK = dict(num_components=1, hidden_features=4)
# full batches, and steps too small to move a weight
STILL = dict(training_batch_size=10_000, max_num_epochs=1, learning_rate=1e-20)
TELESCOPING = {"gradient_cosine", "control_variate_level_1", "gradient_norm_level_1"}


def make(config=None, sims=None, cls=MLNPE, tracker=None):
    trainer = cls(
        prior(),
        density_estimator=posterior_nn("mdn", **NETWORK),
        config=config,
        tracker=tracker or SilentTracker(),
        show_progress_bars=False,
    )
    return trainer.append_multilevel_simulations(sims or simulations())


# ------------------------------------------------------------- formulas


def test_the_coefficient_is_the_slope_of_a_regression():
    generator = np.random.default_rng(0)
    coarse = generator.normal(size=50) + 3
    fine = 2 - 0.7 * coarse + generator.normal(size=50)
    slope = np.polyfit(coarse, fine, 1)[0]
    assert control_variate(fine, coarse) == pytest.approx(slope, rel=1e-12)
    # of two batches: one slope within both, whatever their means
    shifted = np.stack([fine, fine + 100]), np.stack([coarse, coarse - 50])
    assert control_variate(*shifted) == pytest.approx(slope, rel=1e-9)
    assert math.isnan(control_variate(fine, np.ones(50)))


def test_the_coefficient_minimises_the_variance():
    generator = np.random.default_rng(1)
    coarse = generator.normal(size=40)
    fine = 0.4 * coarse + generator.normal(size=40)
    beta = control_variate(fine, coarse)
    best = np.var(fine - beta * coarse)
    assert all(np.var(fine - (beta + h) * coarse) > best for h in (-0.01, 0.01))


def test_variance_of_the_loss_by_hand():
    parts = [np.array([0.0, 2.0]), np.array([1.0, 1.0, 4.0])]  # variances 2 and 3
    assert estimate_variance(parts) == pytest.approx(2 / 2 + 3 / 3)
    batches = [np.array([[0.0, 2.0], [0.0, 4.0]])]  # variances 2 and 8
    assert estimate_variance(batches) == pytest.approx((2 + 8) / 2 / 2)
    assert math.isnan(estimate_variance([np.ones(1), np.ones(5)]))


def test_effective_sample_size_of_known_variances():
    # Var f_1 = 4, Var f_0 = 3, Var(f_1 - f_0) = 1: 4 / (3 / 60 + 1 / 10)
    generator = np.random.default_rng(2)
    batches = 4_000
    base = math.sqrt(3) * generator.normal(size=(batches, 60))
    coarse = math.sqrt(3) * generator.normal(size=(batches, 10))
    fine = coarse + generator.normal(size=(batches, 10))
    expected = 4 / (3 / 60 + 1 / 10)
    found = effective_batch_size([base, fine - coarse], fine)
    # a mean over batches of variances of n rows has relative variance 2 / (n - 1) each
    error = expected * math.sqrt(2 * 2 / 9 / batches)
    assert abs(found - expected) < 4 * error
    # what it means: a plain mean of so many rows varies as the multilevel estimate does
    estimates = base.mean(axis=1) + (fine - coarse).mean(axis=1)
    plain = 2 * generator.normal(size=(batches, round(expected))).mean(axis=1)
    ratio = plain.var() / estimates.var()
    assert abs(ratio - expected / round(expected)) < 4 * 2 / math.sqrt(batches)


def test_effective_sample_size_of_one_level_is_its_number_of_simulations():
    losses = np.random.default_rng(3).normal(size=(5, 17))
    assert effective_batch_size([losses], losses) == pytest.approx(17)


def test_rehearsed_rows_enter_with_their_weight():
    generator = np.random.default_rng(4)
    low, high = generator.normal(size=(7, 20)), generator.normal(size=(7, 5))
    losses = TermLosses({Term(0, 0.25): low, Term(1, 0.75): high})
    variances = [rows.var(axis=-1, ddof=1).mean() for rows in (low, high)]
    expected = 0.25**2 * variances[0] / 20 + 0.75**2 * variances[1] / 5
    assert losses.sum.error == pytest.approx(math.sqrt(expected))
    assert losses.metrics() == {
        "effective_sample_size": pytest.approx(variances[1] / expected)
    }


vectors = st.lists(
    st.floats(-10, 10, allow_nan=False, width=32), min_size=9, max_size=9
).map(lambda values: torch.tensor(values).double().reshape(3, 3))


@settings(max_examples=100, deadline=None)
@given(levels=vectors)
def test_norms_and_cosine_are_those_of_the_vectors(levels):
    gram = levels @ levels.T
    assert torch.allclose(level_norms(gram), levels.norm(dim=1))
    base, correction = levels[0], levels[1:].sum(dim=0)
    length = base.norm() * correction.norm()
    if length > 1e-6:
        cosine = base_cosine(gram)
        assert torch.allclose(cosine, base @ correction / length, atol=1e-6)
        acts = not torch.equal(project(base, correction)[0], base)
        assert acts == (cosine < 0) or cosine.abs() < 1e-6


@pytest.mark.parametrize("adjustment", ADJUSTMENTS)
def test_a_step_tells_the_gradients_of_the_levels(adjustment):
    weight = Parameter(torch.tensor([1.0, 1.0]))
    values = [(row * weight).sum() for row in GRADIENTS]
    step = adjusted_step(values, [weight], adjustment)
    assert torch.allclose(step.direction, combine(GRADIENTS, adjustment).direction)
    if adjustment == "none":  # one backward pass
        assert step.levels is None
        return
    # (-3, 4) + (0, -2) and (0, 1) + (4, -3); rescaled, (0, -5) and (0.8, -0.6)
    by_hand = {
        False: [[2.0, 0.0], [-3.0, 2.0], [4.0, -2.0]],
        True: [[2.0, 0.0], [-3.0, -1.0], [0.8, 0.4]],
    }
    expected = torch.tensor(by_hand["rescale" in adjustment])
    assert torch.allclose(step.levels, expected)


# ------------------------------------------------------------- in a trainer


@pytest.mark.parametrize("rows_for_separate_passes", (None, 1, 10**6))
@pytest.mark.parametrize("adjustment", ("project", "none"))
def test_logged_values_are_those_by_hand(
    adjustment, rows_for_separate_passes, monkeypatch
):
    if rows_for_separate_passes is not None:  # else by layer, in one pass
        monkeypatch.setattr(LayerGradients, "of", lambda *_: None)
    monkeypatch.setattr(
        "sbi_multilevel.training.epochs._MIN_FOR_SEPARATE_PASSES",
        rows_for_separate_passes or 0,
    )
    sims = simulations()
    trainer = make(MultilevelConfig(adjustment=adjustment, early_stopping=False), sims)
    trainer.train(**STILL)
    summary = {k: v[0] for k, v in trainer.summary.items() if isinstance(v, list) and v}
    terms = list(terms_by_hand(trainer, sims, lambda x, level: x))
    gradients = [gradient_of(value, trainer) for value in terms]
    step = combine(torch.stack(gradients), adjustment).direction
    assert summary["gradient_norm"] == pytest.approx(step.norm().item(), rel=1e-4)
    rows = losses_by_hand(trainer, sims)
    for level in (1, 2):
        beta = control_variate(rows[level][0], rows[level][1])
        assert summary[f"control_variate_level_{level}"] == pytest.approx(
            beta, abs=1e-4
        )
    parts = [rows[0][0], *(rows[level][0] - rows[level][1] for level in (1, 2))]
    expected = effective_batch_size(parts, rows[2][0])
    assert summary["effective_sample_size"] == pytest.approx(expected, rel=1e-4)
    if adjustment == "none":
        assert not {"gradient_cosine", "gradient_norm_level_1"} & set(summary)
        return
    corrections = [gradients[1] + gradients[2], gradients[3] + gradients[4]]
    for level, gradient in enumerate([gradients[0], *corrections]):
        found = summary[f"gradient_norm_level_{level}"]
        assert found == pytest.approx(gradient.norm().item(), rel=1e-4)
    cosine = torch.cosine_similarity(gradients[0], sum(corrections), dim=0).item()
    assert summary["gradient_cosine"] == pytest.approx(cosine, abs=1e-4)


def test_training_by_layer_is_that_of_separate_passes(monkeypatch):
    def weights():
        torch.manual_seed(4)
        network = make().train(max_num_epochs=3, training_batch_size=100)
        return torch.cat([value.flatten() for value in network.state_dict().values()])

    by_layer = weights()
    monkeypatch.setattr(LayerGradients, "of", lambda *_: None)
    assert torch.allclose(weights(), by_layer, atol=1e-4)


def losses_by_hand(trainer, sims):
    """For each level the losses of its simulations, fine and coarse."""
    with torch.no_grad():
        return [
            [
                -trainer._neural_net.log_prob(rows.theta[None], x)[0].double().numpy()
                for x in (rows.x, rows.x_coarse)
                if x is not None
            ]
            for rows in sims
        ]


def test_the_error_of_the_validation_loss_is_that_of_the_held_out_simulations():
    sims = simulations()
    trainer = make(MultilevelConfig(stopping="telescoping"), sims)
    trainer.train(validation_fraction=0.3, **STILL)
    rows = losses_by_hand(trainer, sims.select(trainer._plan.split.validation))
    parts = [rows[0][0], *(rows[level][0] - rows[level][1] for level in (1, 2))]
    variance = sum(part.var(ddof=1) / len(part) for part in parts)
    found = trainer.summary["validation_loss_error"][0]
    assert found == pytest.approx(math.sqrt(variance), rel=1e-4)


def test_recording_leaves_training_as_it_was(monkeypatch):
    def weights():
        torch.manual_seed(3)
        network = make().train(max_num_epochs=3, training_batch_size=100)
        values = [v.flatten() for v in network.state_dict().values()]
        return torch.cat([*values, torch.rand(1)])  # no random numbers either

    recorded = weights()
    for name in ("keep_losses", "keep_step"):
        monkeypatch.setattr(StepRecorder, name, lambda *_: None)
    monkeypatch.setattr(StepRecorder, "metrics", lambda _: {})
    assert torch.equal(weights(), recorded)


# ------------------------------------------------------------- live


def test_metrics_arrive_before_the_next_epoch():
    tracker = SilentTracker()
    trainer = make(tracker=tracker)
    step, seen = trainer._train_epoch, []

    def spy(*arguments):
        epochs = {}
        for name, _, epoch in tracker.metrics:
            epochs.setdefault(epoch, set()).add(name)
        seen.append(epochs)
        return step(*arguments)

    trainer._train_epoch = spy
    trainer.train(max_num_epochs=3, training_batch_size=100)
    expected = {"gradient_norm", "gradient_cosine", "effective_sample_size"}
    expected |= {"validation_loss_error"}
    for level in range(3):
        expected |= {f"gradient_norm/level_{level}"}
        expected |= {
            f"{kind}_loss/level_{level}" for kind in ("training", "validation")
        }
    expected |= {"control_variate/level_1", "control_variate/level_2"}
    expected |= {"training_loss/all_levels", "validation_loss/all_levels"}
    assert seen[0] == {}
    for done, epochs in enumerate(seen):
        assert set(epochs) == set(range(done))
        assert all(epochs[epoch] == expected for epoch in epochs)


def test_tensorboard_has_them_on_disk_while_training(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sbi_multilevel.training.tracking._SECONDS_BETWEEN_FLUSHES", 0.0
    )
    trainer = make(tracker=TensorBoardTracker(SummaryWriter(tmp_path)))
    step, read = trainer._train_epoch, []

    def spy(*arguments):
        if trainer.epoch == 2:
            events = EventAccumulator(str(tmp_path))
            events.Reload()
            for name in ("gradient_cosine", "validation_loss/all_levels"):
                read.append([event.step for event in events.Scalars(name)])
        return step(*arguments)

    trainer._train_epoch = spy
    trainer.train(max_num_epochs=3, training_batch_size=100)
    assert read == [[0, 1], [0, 1]]


def test_a_tracker_is_flushed_once_a_second_at_most(monkeypatch):
    tracker, flushed = SilentTracker(), []
    trainer = make(tracker=tracker)
    clock = SimpleNamespace(monotonic=lambda: 100 + 0.6 * trainer.epoch)
    monkeypatch.setattr("sbi_multilevel.training.tracking.time", clock)
    tracker.flush = lambda: flushed.append(trainer.epoch)
    trainer.train(max_num_epochs=4, training_batch_size=100)
    assert flushed == [0, 2, 4, 5]  # the last is sbi's own, at the end


# ------------------------------------------------------------- stages


def test_stages_of_transfer_and_their_epochs():
    sims = simulations((200, 60))
    trainer = make(TransferConfig(rehearsal=0.5), sims, MFNPE)
    trainer.train(max_num_epochs=3, training_batch_size=100)
    first, second = trainer.summary["stages"]
    assert (first["start"], first["levels"]) == (0, [0])
    assert (second["start"], second["levels"]) == (4, [0, 1])
    assert curve(trainer.summary, "training_loss_level_0")[0].tolist() == [*range(8)]
    for key in ("training_loss_level_1", "gradient_norm", "effective_sample_size"):
        assert curve(trainer.summary, key)[0].tolist() == [4, 5, 6, 7]
    assert not TELESCOPING & set(trainer.summary)
    runs = training_runs(trainer.summary)
    assert [run.levels for run in runs] == [(0,), (0, 1)]
    assert [run.converged for run in runs] == [False, False]
    assert len(runs[1].base) == 0  # a rehearsed loss does not telescope


def test_a_stage_that_resumes_is_one_run():
    trainer = make()
    trainer.train(max_num_epochs=2, training_batch_size=100)
    trainer.train(max_num_epochs=5, training_batch_size=100, resume_training=True)
    (run,) = training_runs(trainer.summary)
    assert run.start == 0 and len(run.training_loss) == 6
    assert np.allclose(run.base + run.correction, trainer.summary["training_loss"])


def test_stages_without_a_second_term_log_no_more_than_losses():
    trainer = make(cls=MFNPE)
    trainer.train(max_num_epochs=2, training_batch_size=100)
    assert not ({"effective_sample_size", "gradient_norm"} | TELESCOPING) & set(
        trainer.summary
    )
    assert len(trainer.summary["validation_loss_error"]) == 9
