"""Training of the hybrid methods, from simulations of all levels to one mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from sbi.inference.trainers._contracts import LossArgs, TrainConfig
from sbi.utils.sbiutils import ImproperEmpirical
from tqdm.auto import tqdm

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.losses.effective_sample_size import EffectiveSampleSize
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.hybrid.members import Component, MemberTrainer
from sbi_multilevel.methods.hybrid.pool import (
    LevelStep,
    MapSelector,
    fit_tails,
    split_folds,
)
from sbi_multilevel.methods.hybrid.summary import HybridSummary
from sbi_multilevel.methods.hybrid.weights import (
    ALONE,
    POOLED,
    PRIOR,
    mixture_sample_size,
    mixture_weights,
)
from sbi_multilevel.training.ensemble import warn_of_limit

if TYPE_CHECKING:
    from sbi_multilevel.methods.hybrid.trainer import HybridTrainer


def train_hybrid(
    trainer: HybridTrainer,
    simulations: MultilevelSimulations,
    options: Mapping[str, Any],
) -> tuple[MixtureEstimator, HybridSummary]:
    """Train all members and mix them.

    Args:
        trainer: The user's trainer, whose prior and builder the members share.
        simulations: The simulations, prepared (`sbi_multilevel.data.preparation`).
        options: Arguments of `train` for the members.

    Returns:
        The mixture, and what was chosen.
    """
    config, high = trainer._config, simulations[-1]
    seed = int(torch.randint(2**31, ()))
    tails = fit_tails(simulations) if config.transform_tails else None
    folds = split_folds(LevelArrays.of(high).theta, config.num_members, seed)

    components: dict[str, Component] = {}
    steps: list[LevelStep] = []
    on_half = outputs = None
    prior = _proper_prior(trainer)
    total = _num_networks(config, len(folds), len(simulations))
    with tqdm(total=total, disable=not trainer._show_progress_bars) as bar:
        members = MemberTrainer(trainer, config, high, folds, tails, seed, options, bar)
        members.check()
        if len(simulations) > 1:
            bar.set_description("Selecting level maps")
            selector = MapSelector(config.level_maps, trainer._target, tails, seed)
            pool, steps = selector.below_highest(simulations, config.num_members)
            steps.append(selector.step(pool, members.high, folds))
            outputs = selector.gain_from_outputs(steps[-1], members.high, folds)
            components[POOLED] = members.pooled(steps[-1])
        if config.mix and components:
            on_half = members.on_half()
        if config.mix or not components:
            components[ALONE] = members.alone()
    if config.mix and prior is not None:
        components[PRIOR] = members.prior(prior)

    losses = {name: each.losses for name, each in components.items()}
    weights = mixture_weights(losses) if config.mix else {next(iter(losses)): 1.0}
    estimator = MixtureEstimator(
        [each for name in weights for each in components[name].estimators],
        torch.tensor(_shares(components, weights)),
        trainer._target,
        tails,
        prior if PRIOR in weights else None,
    )
    estimator.to(trainer._device).eval()
    size = None
    if on_half is not None:
        size = mixture_sample_size(losses, on_half.losses, folds)
    training_folds = [members.training_folds(index) for index in range(len(folds))]
    summary = _summarize(components, weights, steps, training_folds, size)
    runs = {name: each.runs for name, each in components.items() if each.runs}
    of_all = [each for by_name in runs.values() for each in by_name.values()]
    warn_of_limit(of_all, options["max_num_epochs"])
    return estimator, replace(summary, outputs=outputs, runs=runs)


def member_options(
    config: TrainConfig,
    loss_args: LossArgs | None,
    batch_size: int,
    dataloader_kwargs: dict,
) -> dict[str, Any]:
    """Arguments of `train` for the members, from those that the user passed.

    Args:
        config: What `train` of the user's trainer was called with.
        loss_args: The same for the loss; a `calibration_kernel` is given x with
            transformed tails.
        batch_size: The same for batches.
        dataloader_kwargs: The same for loaders.
    """
    options = {
        "training_batch_size": batch_size,
        "learning_rate": config.learning_rate,
        "validation_fraction": config.validation_fraction,
        "stop_after_epochs": config.stop_after_epochs,
        "max_num_epochs": config.max_num_epochs,
        "clip_max_norm": config.clip_max_norm,
        "dataloader_kwargs": dataloader_kwargs,
    }
    kernel = getattr(loss_args, "calibration_kernel", None)
    # that of sbi refers to the user's trainer; members make their own
    if kernel is None or (getattr(kernel, "__module__", None) or "").startswith("sbi."):
        return options
    return {**options, "calibration_kernel": kernel}


def _num_networks(config: HybridConfig, num_members: int, num_levels: int) -> int:
    """Number of networks that are trained."""
    if num_levels == 1:
        return num_members
    return 2 * config.shared_start + (3 if config.mix else 1) * num_members


def _shares(
    components: Mapping[str, Component], weights: Mapping[str, float]
) -> list[float]:
    """Weight of each estimator, that of the prior last."""
    shares: list[float] = []
    for name, weight in weights.items():
        count = max(len(components[name].estimators), 1)
        shares += [weight / count] * count
    return shares


def _summarize(
    components: Mapping[str, Component],
    weights: Mapping[str, float],
    steps: list[LevelStep],
    training_folds: Sequence[Sequence[int]],
    size: EffectiveSampleSize | None,
) -> HybridSummary:
    log_scores = {name: float(-each.losses.mean()) for name, each in components.items()}
    # there is one map to a level in between, and one per member to the highest level
    chosen = [[step.choice(range(step.num_folds))] for step in steps[:-1]]
    chosen += [[step.choice(each) for each in training_folds] for step in steps[-1:]]
    return HybridSummary(
        tuple(", ".join(dict.fromkeys(map(str, each))) for each in chosen),
        tuple(
            {str(c): float(scores.mean()) for c, scores in step.scores.items()}
            for step in steps
        ),
        dict(weights),
        log_scores,
        size,
        round(next(iter(components.values())).num_epochs),
    )


def _proper_prior(trainer: HybridTrainer) -> Any | None:
    """The prior, if theta is the target and a prior was given."""
    prior = trainer._prior
    if trainer._target == "x" or isinstance(prior, ImproperEmpirical):
        return None
    return prior
