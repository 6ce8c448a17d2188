"""Trains as the recipe `Hybrid` says, from rows of all levels to one estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sbi.utils.sbiutils import ImproperEmpirical
from scipy.special import logsumexp

from sbi_multilevel.diagnostics import EffectiveRows, effective_rows
from sbi_multilevel.hybrid.pool import Aligner, Step, cut, fit_tails
from sbi_multilevel.hybrid.summary import HybridSummary
from sbi_multilevel.hybrid.team import Component, Team
from sbi_multilevel.mixture import MixtureEstimator
from sbi_multilevel.recipes import Hybrid
from sbi_multilevel.simulations import MultilevelSimulations
from sbi_multilevel.stacking import stacking_weights

if TYPE_CHECKING:
    from sbi_multilevel.trainers.mixin import MultilevelMixin

_POOLED, _ALONE, _PRIOR = "with lower levels", "high fidelity alone", "prior"
_PSEUDO_COUNT = 0.5
# what takes time to evaluate must be worth it; the prior takes none
_LEAST_WEIGHT = 0.02
_FEWEST_ROWS = 4


def train_hybrid(
    trainer: MultilevelMixin,
    simulations: MultilevelSimulations,
    options: Mapping[str, Any],
) -> tuple[MixtureEstimator, HybridSummary]:
    """Train all members and mix them.

    Args:
        trainer: The user's trainer, whose prior and builder the members share.
        simulations: The rows.
        options: Arguments of `train` for the members.
    """
    recipe, high = trainer._recipe, simulations[-1]
    assert isinstance(recipe, Hybrid)
    seed = int(torch.randint(2**31, ()))
    tails = fit_tails(simulations) if recipe.tame_tails else None
    folds = cut(len(high), recipe.num_members, seed)
    team = Team(trainer, recipe, high, folds, tails, seed, options)

    components: dict[str, Component] = {}
    steps: list[Step] = []
    if len(simulations) > 1:
        aligner = Aligner(recipe.alignments, trainer._modelled, tails, seed)
        pool, steps = aligner.below_the_highest(simulations, recipe.num_members)
        steps.append(aligner.step(pool, team.high, folds))
        components[_POOLED] = team.pooled(steps[-1])
    prior = _proper_prior(trainer)
    components[_ALONE] = team.alone()
    if prior is not None:
        components[_PRIOR] = team.prior(prior)

    weights = weigh(components) if recipe.mix else {next(iter(components)): 1.0}
    estimator = MixtureEstimator(
        [each for name in weights for each in components[name].estimators],
        torch.tensor(_shares(components, weights)),
        trainer._modelled,
        tails,
        prior if _PRIOR in weights else None,
    )
    estimator.to(trainer._device).eval()
    worth = None
    if steps:
        worth = _worth(components, team.on_half(), folds)
    return estimator, _summarise(components, weights, steps, worth)


def check_hybrid(trainer: MultilevelMixin, simulations: MultilevelSimulations) -> None:
    """Raise if there are no, or too few, high-fidelity rows."""
    high = simulations[-1]
    if high.level in trainer._low_levels:
        raise ValueError(
            f"Only lower levels were appended, up to level {high.level}. Append rows "
            "of the highest simulator by `append_simulations`, or pairs."
        )
    if len(high) < _FEWEST_ROWS:
        raise ValueError(
            f"The highest level has {len(high)} rows, but recipe='hybrid' needs at "
            f"least {_FEWEST_ROWS}, as it holds some out twice. Simulate more, or use "
            "the recipe 'transfer'."
        )


def weigh(components: Mapping[str, Component]) -> dict[str, float]:
    r"""Stacking weights of the components, where held-out rows ask for them.

    The first component takes all but the share :math:`1 / (n + 1)` of the prior, which
    bounds the loss, unless stacking weights raise the held-out log score by more than
    its standard error.
    """
    log_densities = -np.stack([each.losses for each in components.values()], axis=1)
    names, count = list(components), len(log_densities)
    plain = np.zeros(len(names))
    plain[names.index(_PRIOR) if _PRIOR in names else 0] = 1 / (count + 1)
    plain[0] += 1 - plain.sum()
    stacked = stacking_weights(log_densities, [_PSEUDO_COUNT] * len(names))
    gain = _mixture(log_densities, stacked) - _mixture(log_densities, plain)
    is_better = gain.mean() > gain.std() / np.sqrt(count)
    weights = dict(zip(names, (stacked if is_better else plain).tolist()))
    if _POOLED in weights and weights[_ALONE] < _LEAST_WEIGHT:
        weights[_POOLED] += weights.pop(_ALONE)
    return weights


def _mixture(log_densities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return logsumexp(log_densities, axis=1, b=weights)


def _shares(
    components: Mapping[str, Component], weights: Mapping[str, float]
) -> list[float]:
    """Weight of each estimator, and last that of the prior."""
    shares: list[float] = []
    for name, weight in weights.items():
        count = max(len(components[name].estimators), 1)
        shares += [weight / count] * count
    return shares


def _worth(
    components: Mapping[str, Component],
    on_half: Component,
    folds: Sequence[np.ndarray],
) -> EffectiveRows:
    """What the lower levels added to the same mixture without them."""
    without = {k: each for k, each in components.items() if k != _POOLED}
    half = {**without, _ALONE: on_half}
    losses = [_held_out_losses(each, folds) for each in (components, without, half)]
    return effective_rows(*losses, num_rows=len(losses[0]))


def _held_out_losses(
    components: Mapping[str, Component], folds: Sequence[np.ndarray]
) -> np.ndarray:
    """Loss of each row under the mixture that is weighed by the other folds."""
    table = -np.stack([each.losses for each in components.values()], axis=1)
    losses = np.empty(len(table))
    for fold in folds:
        others = np.setdiff1d(np.arange(len(table)), fold)
        kept = {
            name: Component([], each.losses[others])
            for name, each in components.items()
        }
        weights = weigh(kept)
        values = np.array([weights.get(name, 0.0) for name in components])
        losses[fold] = -_mixture(table[fold], values)
    return losses


def _summarise(
    components: Mapping[str, Component],
    weights: Mapping[str, float],
    steps: list[Step],
    worth: EffectiveRows | None,
) -> HybridSummary:
    scores = {name: float(-each.losses.mean()) for name, each in components.items()}
    return HybridSummary(
        tuple(", ".join(dict.fromkeys(map(str, step.choices))) for step in steps),
        tuple(step.scores for step in steps),
        dict(weights),
        scores,
        worth,
        round(next(iter(components.values())).num_epochs),
    )


def _proper_prior(trainer: MultilevelMixin) -> Any | None:
    """The prior as a density of theta, where theta is modelled and it was given."""
    prior = trainer._prior
    if trainer._modelled == "x" or isinstance(prior, ImproperEmpirical):
        return None
    return prior
