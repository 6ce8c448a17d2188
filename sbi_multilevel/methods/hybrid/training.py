"""Training of the hybrid methods, from simulations of all levels to one mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.losses.effective_sample_size import EffectiveSampleSize
from sbi_multilevel.methods.hybrid.calibration import calibrate
from sbi_multilevel.methods.hybrid.distillation import distill
from sbi_multilevel.methods.hybrid.members import MemberTrainer
from sbi_multilevel.methods.hybrid.pool import LevelStep
from sbi_multilevel.methods.hybrid.run import Component, Group, HybridRun
from sbi_multilevel.methods.hybrid.summary import HybridSummary, OutputsGain
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
    members = MemberTrainer(trainer, simulations, run)
    members.check()
    steps: list[LevelStep] = []
    groups: dict[str, Group] = {}
    mixes, distillation = trainer._config.mix, None
    total = _num_networks(members)
    with tqdm(total=total, disable=not trainer._show_progress_bars) as bar:
        members.bar = bar
        if len(simulations) > 1:
            bar.set_description("Selecting level maps")
            steps = members.select_maps()
            groups[POOLED] = members.pooled(steps[-1])
        if mixes or not steps:
            groups[ALONE] = members.alone()
        components = members.train(groups)
        if mixes and trainer._target == "theta" and members.prior is not None:
            components[PRIOR] = members.prior_alone()
        losses = {name: each.losses for name, each in components.items()}
        first = next(iter(components.values()))
        weights = {next(iter(components)): 1.0}
        if mixes:
            weights = mixture_weights(losses, members.high.weights)
        networks, shares = _shared(components, weights)
        if trainer._distills:
            networks, shares = _merged(networks, shares)
        estimator = members.mixed(networks, torch.tensor(shares), PRIOR in weights)
        estimator, calibration = calibrate(members, estimator, first.estimators)
        if steps and trainer._distills:
            estimator, distillation = distill(members, estimator, steps[-1])
    sizes = {name: _count(networks, components[name].estimators) for name in weights}
    if distillation is not None and distillation.is_used:
        sizes = {}
    runs = {name: each.runs for name, each in components.items() if each.runs}
    of_all = [each for by_name in runs.values() for each in by_name.values()]
    warn_of_limit(of_all, run.options["max_num_epochs"])
    summary = HybridSummary(
        _maps_used(steps),
        tuple(
            {str(c): float(each.score.mean()) for c, each in step.scores.items()}
            for step in steps
        ),
        weights,
        {name: float(-each.mean()) for name, each in losses.items()},
        round(first.num_epochs),
        distillation=distillation,
        calibration=calibration,
        num_networks=sizes,
        runs=runs,
    )
    return estimator, summary, replace(run, losses=losses, finished={})


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
    members = MemberTrainer(trainer, simulations, replace(run, finished={}))
    step, high, folds = members.select_maps()[-1], members.high, members.folds
    outputs = members.selector.gain_from_outputs(step, high, folds)
    if ALONE not in run.losses:
        return None, outputs
    total = len(folds)
    with tqdm(total=total, disable=not trainer._show_progress_bars) as bar:
        members.bar = bar
        on_half = members.train({ALONE: members.on_half()})[ALONE]
    size = mixture_sample_size(run.losses, on_half.losses, folds, high.weights)
    return size, outputs


def _num_networks(members: MemberTrainer) -> int:
    """Number of networks that are trained."""
    config, count = members.config, len(members.folds)
    if len(members.simulations) == 1:
        return count
    students = int(members.trainer._distills)
    return 2 * config.shared_start + (1 + config.mix) * count + students


def _shared(
    components: Mapping[str, Component], weights: Mapping[str, float]
) -> tuple[list[Any], list[float]]:
    """The networks of the mixture, and their weights, that of the prior last."""
    networks, shares = [], []
    for name, weight in weights.items():
        own = components[name].estimators
        count = max(len(own), 1)  # the prior is no network
        networks += own
        shares += [weight / count] * count
    return networks, shares


def _merged(
    networks: Sequence[Any], shares: Sequence[float]
) -> tuple[list[Any], list[float]]:
    """The same with equal networks as one, which has the sum of their weights.

    Members that fine-tuning did not improve are the network that they started from.
    """
    distinct: list[Any] = []
    sums: list[float] = []
    for network, share in zip(networks, shares):
        same = (i for i, each in enumerate(distinct) if _are_equal(each, network))
        index = next(same, None)
        if index is None:
            distinct.append(network)
            sums.append(share)
        else:
            sums[index] += share
    return distinct, [*sums, *shares[len(networks) :]]


def _count(networks: Sequence[Any], own: Sequence[Any]) -> int:
    """How many of the networks of a mixture are those of a component."""
    return sum(any(each is network for each in own) for network in networks)


def _are_equal(network: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers are."""
    states = [[*each.parameters(), *each.buffers()] for each in (network, other)]
    return len(states[0]) == len(states[1]) and all(map(torch.equal, *states))


def _maps_used(steps: Sequence[LevelStep]) -> tuple[str, ...]:
    """The maps of each step; each member has its own to the highest level."""
    used = [[step.choice(step.folds())] for step in steps[:-1]]
    used += [
        [step.choice(step.folds(but=fold)) for fold in step.folds()]
        for step in steps[-1:]
    ]
    return tuple(", ".join(dict.fromkeys(map(str, each))) for each in used)
