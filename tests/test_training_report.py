"""Verdicts of `check_training` on synthetic losses and on trainings."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sbi.inference import NPE

from sbi_multilevel import MFNPE, MLNPE, MultilevelConfig
from sbi_multilevel.diagnostics.training_report import (
    TrainingReport,
    assess_run,
    check_training,
)
from sbi_multilevel.training.history import TrainingRun
from tests.linear_gaussian import SilentTracker, prior, simulations

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")
EPOCHS, NOISE = 60, 0.03


def make(cls=MLNPE, network="mdn", sims=None, plain=None, **options):
    trainer = cls(
        prior(),
        density_estimator=network,
        tracker=SilentTracker(),
        show_progress_bars=False,
        **options,
    )
    if plain is not None:
        return trainer.append_simulations(*plain)
    return trainer.append_multilevel_simulations(sims)


def one_level(n=400, seed=0):
    level = simulations((n,), seed)[0]
    return level.theta, level.x


# ------------------------------------------------------------- synthetic losses


def decay(start, end, scale=8.0, seed=0):
    noise = NOISE * np.random.default_rng(seed).normal(size=EPOCHS)
    return end + (start - end) * np.exp(-np.arange(EPOCHS) / scale) + noise


def run_of(training, validation=None, base=None, converged=True):
    if validation is None:
        validation = np.full(EPOCHS, np.nan)
    levels = () if base is None else (0, 1)
    return TrainingRun(
        0,
        levels,
        training,
        validation,
        np.full(EPOCHS, 0.2),
        np.empty(0) if base is None else base,
        converged,
        float(np.nanmin([*validation, np.inf])),
    )


@pytest.mark.parametrize("seed", range(20))
def test_decreasing_losses_are_converged(seed):
    training, validation = decay(3, 1, seed=seed), decay(3, 1.2, seed=100 + seed)
    assert assess_run(run_of(training, validation)) == ("converged", [])
    # the base rises to a constant, and the correction falls by as much
    lift = 30 * (1 - np.exp(-np.arange(EPOCHS) / 8))
    run = run_of(training, validation, base=training + lift)
    assert assess_run(run) == ("converged", [])
    assert assess_run(replace(run, converged=False))[0] == "stopped at max epochs"
    # also while they still change, at a decreasing rate
    lift = 30 * (1 - np.exp(-np.arange(EPOCHS) / 40))
    run = run_of(training, base=training + lift)
    assert assess_run(run) == ("converged", [])


def test_overfitting_is_reported_as_converged():
    validation = decay(3, 1.2) + np.maximum(np.arange(EPOCHS) - 30, 0) * 0.1
    verdict, (note,) = assess_run(run_of(decay(3, 1), validation))
    assert verdict == "converged" and "overfitting" in note
    assert f"The weights of epoch {np.argmin(validation)} were kept." in note
    warm = replace(run_of(decay(3, 1), validation), best_validation_loss=0.0)
    assert warm.best_epoch == -1
    assert "The initial weights were kept." in assess_run(warm)[1][0]
    # within the error of the validation loss
    few = replace(run_of(decay(3, 1), validation), validation_error=np.ones(EPOCHS))
    assert assess_run(few) == ("converged", [])


@pytest.mark.parametrize("value", (np.nan, np.inf))
@pytest.mark.parametrize("which", ("training_loss", "validation_loss"))
def test_a_loss_that_is_not_finite_is_reported_as_diverged(which, value):
    run = run_of(decay(3, 1), decay(3, 1))
    getattr(run, which)[40] = value
    verdict, (reason,) = assess_run(run)
    assert verdict == "diverged" and "not finite" in reason


def test_rising_training_and_validation_loss_is_reported_as_diverged():
    up = 0.2 * np.maximum(np.arange(EPOCHS) - 20, 0)
    verdict, (reason,) = assess_run(run_of(decay(3, 1) + up, decay(3, 1) + up))
    assert verdict == "diverged" and "nats above its minimum" in reason
    assert assess_run(run_of(decay(3, 1) + up))[0] == "diverged"
    # e.g. with dropout, which is inactive in validation
    assert assess_run(run_of(decay(3, 1) + up, decay(3, 1)))[0] == "converged"
    slight = up / 20  # 0.4 nats in all
    assert (
        assess_run(run_of(decay(3, 1) + slight, decay(3, 1) + slight))[0] != "diverged"
    )
    # with 1000 dimensions, where the standard deviation of a loss is 22 nats
    assert assess_run(run_of(decay(3, 1) + up), spread=22.0)[0] != "diverged"


def test_large_changes_until_the_end_are_reported_as_diverged():
    jumps = 3.0 * (-1.0) ** np.arange(EPOCHS)
    verdict, (reason,) = assess_run(run_of(40 + jumps, 40 + jumps))
    assert verdict == "diverged" and "changed by 6 nats" in reason
    assert assess_run(run_of(40 + jumps / 30, 40 + jumps / 30))[0] == "converged"


def test_an_unbounded_correction_is_reported_as_diverged():
    base = decay(3, 1) + 0.002 * np.arange(EPOCHS) ** 2
    correction = -0.003 * np.arange(EPOCHS) ** 2
    verdict, (reason,) = assess_run(run_of(base + correction, base=base))
    assert verdict == "diverged" and "the correction fell by 7.74 nats" in reason
    # the validation loss still falls: the network may learn how the levels differ
    run = run_of(base + correction, decay(3, 1, 20), base=base)
    assert assess_run(run)[0] == "converged"
    # unless it falls very far, also if projection protects the base
    far = run_of(base + 10 * correction, decay(3, 1, 20), base=base)
    assert assess_run(far)[0] == "diverged"
    protected = run_of(decay(3, 1) + 10 * correction, base=decay(3, 1))
    assert assess_run(protected)[0] == "diverged"


def test_an_interrupted_run_is_reported_as_unfinished():
    verdict, (reason,) = assess_run(run_of(decay(3, 1), decay(3, 1), converged=None))
    assert verdict == "unfinished" and "in epoch 61" in reason


def test_an_interrupted_run_past_its_best_weights_is_reported():
    up = np.maximum(np.arange(EPOCHS) - 30, 0) * 0.1
    run = run_of(decay(3, 1), decay(3, 1.2) + up, converged=None)
    verdict, (_, reason) = assess_run(run)
    assert verdict == "unfinished"
    best = np.argmin(run.validation_loss)
    assert reason.startswith("the weights of the last step were kept, but the valid")
    assert f"nats lower in epoch {best}. Train again" in reason
    # within the error of the validation loss
    few = replace(run, validation_error=np.ones(EPOCHS))
    assert len(assess_run(few)[1]) == 1
    diverged = replace(run, training_loss=decay(3, 1) + 2 * up)
    verdict, (reason,) = assess_run(diverged)
    assert verdict == "diverged"
    assert reason.endswith("The weights of the last step were kept.")


# ------------------------------------------------------------- trainings


@pytest.mark.parametrize("rate", (5e-4, 1.0))
def test_a_very_large_learning_rate_is_reported_as_diverged(rate):
    torch.manual_seed(0)
    trainer = make(network="maf", plain=one_level(200))
    trainer.train(learning_rate=rate, max_num_epochs=20)
    verdict = check_training(trainer).verdict
    assert verdict == ("diverged" if rate == 1.0 else "stopped at max epochs")


FULL_BATCH = dict(learning_rate=2e-3, training_batch_size=1_000)


@pytest.mark.parametrize("seed", range(2))
def test_a_training_with_an_unbounded_correction_is_reported_as_diverged(seed):
    sims = simulations((300, 60), seed)
    torch.manual_seed(seed)
    bounded = make(sims=sims)
    bounded.train(**FULL_BATCH)
    assert check_training(bounded).verdict == "converged"
    torch.manual_seed(seed)
    config = MultilevelConfig(adjustment="none", early_stopping=False)
    unbounded = make(sims=sims, config=config)
    unbounded.train(max_num_epochs=150, **FULL_BATCH)
    report = check_training(unbounded)
    assert report.verdict == "diverged"
    assert "the correction fell" in str(report) and "the base rose" in str(report)
    assert str(report).startswith("Training: diverged.\nRun 1 (levels 0, 1): ")


def test_an_error_of_sbi_is_reported_as_unfinished():
    torch.manual_seed(0)
    trainer = make(plain=one_level(), network="mdn")
    with pytest.raises(ValueError, match="NaN/Inf"):
        trainer.train(learning_rate=10.0)
    report = check_training(trainer)
    assert report.verdict == "unfinished" and "in epoch 1." in report.reasons[0]


class Stopping(SilentTracker):
    """Interrupts a training, as a key does in a notebook."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def log_metric(self, name, value, step=None):
        if step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("epochs", "is_past_best"), ((40, False), (150, True)))
def test_an_interrupted_training_keeps_its_last_weights(epochs, is_past_best):
    torch.manual_seed(0)
    trainer = make(MFNPE, sims=simulations((100, 30)))
    trainer._tracker = Stopping(epochs)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(learning_rate=5e-3, stop_after_epochs=1_000)
    best, left = trainer._best_model_state_dict, trainer._neural_net.state_dict()
    assert any(not torch.equal(best[name], left[name]) for name in left)
    report = check_training(trainer)
    assert report.verdict == "unfinished"
    assert (len(report.reasons) == 2) == is_past_best
    assert ("the validation loss was" in str(report)) == is_past_best


def test_each_stage_has_a_verdict_and_the_most_severe_is_reported():
    torch.manual_seed(0)
    trainer = make(MFNPE, sims=simulations((400, 60)))
    trainer.train(learning_rate=5e-3, stop_after_epochs=5)
    assert check_training(trainer).verdicts == ("converged", "converged")
    torch.manual_seed(0)
    trainer = make(MFNPE, sims=simulations((400, 60)))
    trainer.train(learning_rate=5e-3, stop_after_epochs=5, max_num_epochs=8)
    report = check_training(trainer)
    # the second stage may converge in eight epochs
    assert report.verdict == report.verdicts[0] == "stopped at max epochs"
    assert len(report.verdicts) == 2


def test_trainers_of_sbi_have_a_verdict():
    def trained(**options):
        torch.manual_seed(0)
        trainer = make(NPE, plain=one_level(100))
        trainer.train(learning_rate=5e-3, **options)
        return check_training(trainer).verdict

    assert trained() == "converged"
    assert trained(max_num_epochs=10) == "stopped at max epochs"


def test_inputs_without_a_training_are_rejected():
    with pytest.raises(ValueError, match="Call `inference.train"):
        check_training(make(plain=one_level()))
    with pytest.raises(ValueError, match="must be a trainer"):
        check_training(SimpleNamespace())
    with pytest.raises(ValueError, match="hybrid_summary has no runs"):
        check_training(hybrid({}, {"prior": 1.0}))


def hybrid(runs, weights):
    return SimpleNamespace(hybrid_summary=SimpleNamespace(runs=runs, weights=weights))


def test_members_with_weight_are_checked():
    converged = run_of(decay(3, 1), decay(3, 1.2))
    broken = replace(converged, training_loss=np.full(EPOCHS, np.nan))
    runs = {
        "with lower levels": {
            "member 1": (converged,),
            "member 2": (broken, converged),
        },
        "high fidelity alone": {"member 1": (converged,)},
    }
    report = check_training(hybrid(runs, dict.fromkeys([*runs, "prior"], 0.3)))
    assert report.verdict == "diverged" and len(report.verdicts) == 4
    counted, reason = report.reasons
    assert counted == "1 of 4 runs of members did not converge."
    assert reason.startswith("with lower levels, member 2: a loss is not finite")
    without = check_training(hybrid(runs, {"high fidelity alone": 1.0}))
    assert without == TrainingReport("converged", ("converged",), ())
