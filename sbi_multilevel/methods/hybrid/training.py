"""Training of the hybrid methods, from simulations of all levels to one mixture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from sbi.inference.trainers._contracts import TrainConfig
from sbi.utils.sbiutils import ImproperEmpirical
from tqdm.auto import tqdm

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.losses.effective_sample_size import EffectiveSampleSize
from sbi_multilevel.methods.hybrid.calibration import calibrate
from sbi_multilevel.methods.hybrid.distillation import MAX_LOSS, distill
from sbi_multilevel.methods.hybrid.members import MemberTrainer
from sbi_multilevel.methods.hybrid.pool import (
    LevelStep,
    MapSelector,
    fit_tails,
    limit_lower,
    split_folds,
)
from sbi_multilevel.methods.hybrid.run import Component, HybridRun
from sbi_multilevel.methods.hybrid.summary import (
    Distillation,
    HybridSummary,
    OutputsGain,
)
from sbi_multilevel.methods.hybrid.weights import (
    ALONE,
    POOLED,
    PRIOR,
    mixture_sample_size,
    mixture_weights,
)
from sbi_multilevel.training.ensemble import warn_of_limit
from sbi_multilevel.utils.seeds import seeded

if TYPE_CHECKING:
    from sbi_multilevel.estimators.mixture import MixtureEstimator
    from sbi_multilevel.methods.hybrid.trainer import HybridTrainer


def train_hybrid(
    trainer: HybridTrainer,
    simulations: MultilevelSimulations,
    run: HybridRun,
) -> tuple[Any, HybridSummary, HybridRun]:
    """Train all members and mix them.

    Args:
        trainer: The user's trainer, whose prior and builder the members share.
        simulations: The simulations, prepared (`sbi_multilevel.data.preparation`).
        run: Seed and arguments of the training; finished networks are not trained
            again.

    Returns:
        The mixture, what was chosen, and the training, which has ended.
    """
    config, distillation = trainer._config, None
    members = _members(trainer, simulations, run)
    total = _num_networks(trainer, len(members.folds), len(simulations))
    with tqdm(total=total, disable=not trainer._show_progress_bars) as bar:
        members = replace(members, bar=bar)
        members.check()
        components, steps = _train_components(trainer, simulations, members)
        losses = {name: each.losses for name, each in components.items()}
        name, first = next(iter(components.items()))
        weights = {name: 1.0}
        if config.mix:
            weights = mixture_weights(losses, members.high.weights)
        estimator = trainer._mix(
            [each for name in weights for each in components[name].estimators],
            torch.tensor(_shares(components, weights)),
            members.tails,
            has_prior=PRIOR in weights,
        )
        estimator.to(trainer._device).eval()
        estimator, calibration = calibrate(members, estimator, first.estimators)
        if steps and trainer._distills:
            estimator, distillation = _distill(members, estimator, steps[-1])
    training_folds = [members.training_folds(i) for i in range(len(members.folds))]
    summary = _summarize(components, weights, steps, training_folds)
    summary = replace(summary, calibration=calibration, distillation=distillation)
    runs = {name: each.runs for name, each in components.items() if each.runs}
    of_all = [each for by_name in runs.values() for each in by_name.values()]
    warn_of_limit(of_all, run.options["max_num_epochs"])
    run = replace(run, losses=losses, finished={})
    return estimator, replace(summary, runs=runs), run


def estimate_gain(
    trainer: HybridTrainer, simulations: MultilevelSimulations, run: HybridRun
) -> tuple[EffectiveSampleSize | None, OutputsGain | None]:
    """The contribution of the lower levels.

    Args:
        trainer: The trainer.
        simulations: The simulations that it was trained on, prepared.
        run: Its training.

    Returns:
        The effective sample size, `None` if the mixture has no networks trained on
        high-fidelity simulations alone, and the gain from outputs.
    """
    members = _members(trainer, simulations, replace(run, finished={}))
    (*_, step) = _select_maps(trainer, simulations, members)
    selector = _selector(trainer, members)
    outputs = selector.gain_from_outputs(step, members.high, members.folds)
    if ALONE not in run.losses:
        return None, outputs
    total = len(members.folds)
    with tqdm(total=total, disable=not trainer._show_progress_bars) as bar:
        on_half = replace(members, bar=bar).on_half()
    size = mixture_sample_size(
        run.losses, on_half.losses, members.folds, members.high.weights
    )
    return size, outputs


def _train_components(
    trainer: HybridTrainer, simulations: MultilevelSimulations, members: MemberTrainer
) -> tuple[dict[str, Component], list[LevelStep]]:
    """The components of the mixture, and the steps between levels."""
    config, prior = trainer._config, _proper_prior(trainer)
    components: dict[str, Component] = {}
    steps: list[LevelStep] = []
    if len(simulations) > 1:
        if members.bar is not None:
            members.bar.set_description("Selecting level maps")
        steps = _select_maps(trainer, simulations, members)
        components[POOLED] = members.pooled(steps[-1])
    if config.mix or not components:
        components[ALONE] = members.alone()
    if config.mix and prior is not None:
        components[PRIOR] = members.prior(prior)
    return components, steps


def _distill(
    members: MemberTrainer, mixture: MixtureEstimator, step: LevelStep
) -> tuple[Any, Distillation]:
    """One network in place of those of the mixture, if it loses little."""
    every = range(len(members.folds))
    pool = step.map_low(members.high, every, unseen=members.high.theta[:0])
    pool = members.joined(pool, members.high)
    given = pool[1] if mixture.target == "theta" else pool[0]
    with seeded(members.run.seed):
        network, loss, error = distill(members, mixture, given)
    wanted = members.config.distill
    is_used = loss < MAX_LOSS if wanted == "auto" else math.isfinite(loss)
    if is_used or members.trainer._needs_one_network:
        estimator = members.trainer._in_place_of(mixture, network).to(given.device)
    else:
        estimator = mixture
    return estimator.eval(), Distillation(loss, error, estimator is not mixture)


def _members(
    trainer: HybridTrainer,
    simulations: MultilevelSimulations,
    run: HybridRun,
) -> MemberTrainer:
    config, high = trainer._config, simulations[-1]
    tails = fit_tails(simulations) if config.transform_tails else None
    folds = split_folds(LevelArrays.of(high).theta, config.num_members, run.seed)
    return MemberTrainer(trainer, config, high, folds, tails, run)


def _selector(trainer: HybridTrainer, members: MemberTrainer) -> MapSelector:
    return MapSelector(
        trainer._config.level_maps,
        trainer._target,
        members.tails,
        members.run.seed,
        {part.level: LevelArrays.of(part) for part in trainer._map_pairs},
    )


def _select_maps(
    trainer: HybridTrainer, simulations: MultilevelSimulations, members: MemberTrainer
) -> list[LevelStep]:
    """The steps from each level to the next."""
    selector, config = _selector(trainer, members), trainer._config
    simulations = limit_lower(simulations, config.max_low, members.run.seed)
    pool, steps = selector.below_highest(simulations, config.num_members)
    level = len(simulations) - 1
    return [*steps, selector.step(pool, members.high, members.folds, level=level)]


def member_options(
    config: TrainConfig,
    loss_options: Mapping[str, Any],
    batch_size: int,
    dataloader_kwargs: dict,
) -> dict[str, Any]:
    """Arguments of `train` for the members, from those that the user passed.

    Args:
        config: What `train` of the user's trainer was called with.
        loss_options: The same for the loss; a `calibration_kernel` is given x with
            transformed tails.
        batch_size: The same for batches.
        dataloader_kwargs: The same for loaders.
    """
    return {
        "training_batch_size": batch_size,
        "learning_rate": config.learning_rate,
        "validation_fraction": config.validation_fraction,
        "stop_after_epochs": config.stop_after_epochs,
        "max_num_epochs": config.max_num_epochs,
        "clip_max_norm": config.clip_max_norm,
        "dataloader_kwargs": dataloader_kwargs,
        **loss_options,
    }


def _num_networks(trainer: HybridTrainer, num_members: int, num_levels: int) -> int:
    """Number of networks that are trained."""
    if num_levels == 1:
        return num_members
    config, students = trainer._config, int(trainer._distills)
    return 2 * config.shared_start + (1 + config.mix) * num_members + students


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
) -> HybridSummary:
    log_scores = {name: float(-each.losses.mean()) for name, each in components.items()}
    # there is one map to a level in between, and one per member to the highest level
    chosen = [[step.choice(range(step.num_folds))] for step in steps[:-1]]
    chosen += [[step.choice(each) for each in training_folds] for step in steps[-1:]]
    return HybridSummary(
        tuple(", ".join(dict.fromkeys(map(str, each))) for each in chosen),
        tuple(
            {str(c): float(each.score.mean()) for c, each in step.scores.items()}
            for step in steps
        ),
        dict(weights),
        log_scores,
        round(next(iter(components.values())).num_epochs),
    )


def _proper_prior(trainer: HybridTrainer) -> Any | None:
    """The prior, if theta is the target and a prior was given."""
    prior = trainer._prior
    if trainer._target == "x" or isinstance(prior, ImproperEmpirical):
        return None
    return prior
