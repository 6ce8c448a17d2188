r"""Losses of rows under quick fits that have not seen them.

The multilevel loss is known as well as :math:`V_l = \mathrm{Var}[f_l - f_{l-1}]` allows
at the network that training ends at, which a pilot does not have. It makes do with
plain fits to the outputs of *all* levels together, as if they were of one simulator. On
our benchmark tasks their :math:`V_l` are near those of the multilevel fit and vary much
less from seed to seed than those of a multilevel fit to so few pairs. A fit to level 0
alone is judged far from its rows, where its tails are arbitrary.

Rows are cut into folds, by turns; each fold is judged by the fit to the others.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import cloudpickle
import numpy as np
import torch
from sbi.inference import NPE
from sbi.inference.trainers.base import NeuralInference
from sbi.inference.trainers.nle.nle_base import LikelihoodEstimatorTrainer
from sbi.inference.trainers.nre.nre_base import RatioEstimatorTrainer
from torch import Tensor

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.level_maps import fit_alignments
from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.simulation.noise import derive_seed, seeded
from sbi_multilevel.training.tracking import SilentTracker

Inference = NeuralInference | Callable[[Any], NeuralInference]

_FIT_STREAM, _LOSS_STREAM = 10, 11
# rows of a level that a quick fit is trained on at most, and that are judged at once
_MAX_TRAINING_ROWS, _CHUNK = 5_000, 10_000


def get_trainer(inference: Inference | None, prior: Any) -> NeuralInference:
    """The trainer of the quick fits.

    Args:
        inference: A trainer of sbi or of this package without simulations, a trained
            one, a function of the prior that makes one, or `None` for NPE.
        prior: The prior.

    Raises:
        ValueError: If the trainer holds simulations but is not trained, or has no loss
            of a single row.
    """
    trainer = inference
    if inference is None:
        trainer = NPE(prior, tracker=SilentTracker(), show_progress_bars=False)
    elif not isinstance(inference, NeuralInference):
        trainer = inference(prior)
    if not isinstance(trainer, NeuralInference) or isinstance(
        trainer, RatioEstimatorTrainer
    ):
        raise ValueError(
            f"inference is a {type(trainer).__name__}, which has no loss of a single "
            "row. Pass a trainer of NPE or NLE, e.g. `MLNPE(prior)`."
        )
    if trainer._neural_net is None and trainer._theta_roundwise:
        raise ValueError(
            "inference holds simulations, but is not trained. Pass a new trainer, to "
            "be fitted to the rows of the pilot, or train it first."
        )
    return trainer


def held_out_losses(
    trainer: NeuralInference,
    simulations: MultilevelSimulations,
    outputs: Sequence[Sequence[Tensor]],
    *,
    seed: int,
    num_folds: int,
    train_options: Mapping[str, Any],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Losses of all outputs of all rows, each by a fit to other rows.

    Args:
        trainer: As of `get_trainer`; a trained one is used as it is.
        simulations: The rows.
        outputs: For the rows of each level m the outputs of levels 0 to m, each of
            shape `(n_m, *x_shape)`; NaN where unknown.
        seed: Seed of the fits.
        num_folds: Number of folds.
        train_options: Arguments of `train`.

    Returns:
        Losses, a table `(n_m, m + 1)` for each level, and the number of the fit that
        judged each row, `(n_m,)`.
    """
    outputs = _aligned(trainer, simulations, outputs)
    is_trained = trainer._neural_net is not None
    num_folds = 1 if is_trained else num_folds
    folds = [torch.arange(len(rows)) % num_folds for rows in simulations]
    losses = [np.full((len(rows), m + 1), np.nan) for m, rows in enumerate(simulations)]
    for fold in range(num_folds):
        fit_seed = derive_seed(seed, _FIT_STREAM, fold)
        fit = trainer
        if not is_trained:
            others = [of_row != fold for of_row in folds]
            fit = _fitted(
                trainer, simulations, outputs, others, fit_seed, train_options
            )
        for level, rows in enumerate(simulations):
            mine = folds[level] == fold
            for below, x in enumerate(outputs[level]):
                values = _losses(fit, rows.theta[mine], x[mine], seed)
                losses[level][mine.numpy(), below] = values
    return losses, [of_row.numpy() for of_row in folds]


def _fitted(
    trainer: NeuralInference,
    simulations: MultilevelSimulations,
    outputs: Sequence[Sequence[Tensor]],
    chosen: Sequence[Tensor],
    seed: int,
    train_options: Mapping[str, Any],
) -> NeuralInference:
    """A copy of the trainer, trained on both sides of the chosen rows."""
    theta, x = [], []
    for level, rows in enumerate(simulations):
        index = torch.nonzero(chosen[level])[:_MAX_TRAINING_ROWS, 0]
        for side in outputs[level][max(level - 1, 0) :]:
            theta.append(rows.theta[index])
            x.append(side[index])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sbi's, on what a copy lacks
        fit = deepcopy(trainer)
    # neither survives a copy; the builder may hold an embedding net, not to be shared
    fit._tracker = SilentTracker()
    builder = trainer._build_neural_net
    fit._build_neural_net = cloudpickle.loads(cloudpickle.dumps(builder))
    with seeded(seed), contextlib.redirect_stdout(io.StringIO()):
        fit.append_simulations(torch.cat(theta), torch.cat(x)).train(**train_options)
    return fit


@torch.no_grad()
def _losses(fit: NeuralInference, theta: Tensor, x: Tensor, seed: int) -> np.ndarray:
    """Loss of each row, shape `(n,)`; NaN where x is."""
    network = fit._neural_net
    assert network is not None
    was_training = network.training
    network.eval()
    device = next((p.device for p in network.parameters()), theta.device)
    known = x.isfinite().flatten(1).all(dim=1)
    values = np.full(len(x), np.nan)
    parts = []
    for rows in torch.nonzero(known)[:, 0].split(_CHUNK):
        sides = theta[rows].to(device), x[rows].to(device)
        if isinstance(fit, LikelihoodEstimatorTrainer):
            sides = sides[::-1]
        # a loss that draws numbers draws the same ones for all levels of a row
        with seeded(derive_seed(seed, _LOSS_STREAM)):
            parts.append(network.loss(sides[0], condition=sides[1]).double().cpu())
    if parts:
        values[known.numpy()] = torch.cat(parts).numpy()
    network.train(was_training)
    return values


def _aligned(
    trainer: NeuralInference,
    simulations: MultilevelSimulations,
    outputs: Sequence[Sequence[Tensor]],
) -> Sequence[Sequence[Tensor]]:
    """Outputs of lower levels moved as the recipe moves them, if by pairs."""
    config = getattr(trainer, "_config", None)
    if not isinstance(config, MultilevelConfig) or config.alignment != "affine":
        return outputs
    places = [(level, False) for level in range(len(simulations))]
    maps = fit_alignments("affine", simulations, places)
    return [
        [maps[level](rows.theta, x)[1] for level, x in enumerate(sides)]
        for rows, sides in zip(simulations, outputs)
    ]
