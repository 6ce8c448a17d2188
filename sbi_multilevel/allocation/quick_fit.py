r"""Losses of simulations under quick fits to other simulations.

The precision of the multilevel loss is that of :math:`V_l = \mathrm{Var}[f_l -
f_{l-1}]` at the network at which training ends, which a pilot does not have. It uses
plain fits to the outputs of *all* levels together, as if they came from one simulator.
On our benchmark tasks their :math:`V_l` are close to those of the multilevel fit and
vary much less between seeds than those of a multilevel fit to so few pairs. A fit to
level 0 alone would be evaluated far from its training data, where its tails are
arbitrary.

Simulations are assigned to folds in turn; the losses of each fold come from the fit to
the other folds.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
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
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel.utils.seeds import derive_seed, seeded

Inference = NeuralInference | Callable[[Any], NeuralInference]

_FIT_STREAM, _LOSS_STREAM = 10, 11
# limits of the training simulations of a level, and of losses evaluated at a time
_MAX_TRAINING, _CHUNK = 5_000, 10_000


def get_trainer(inference: Inference | None, prior: Any) -> NeuralInference:
    """The trainer of the quick fits; `inference` as of `pilot`."""
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
            "simulation. Pass a trainer of NPE or NLE, e.g. `MLNPE(prior)`."
        )
    if trainer._neural_net is None and trainer._theta_roundwise:
        raise ValueError(
            "inference holds simulations, but is not trained. Pass a new trainer, to "
            "be fitted to the pilot, or train it first."
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
    """Losses of all outputs of all simulations, each by a fit to other simulations.

    Args:
        trainer: Result of `get_trainer`; a trained one is used without a fit.
        simulations: The simulations.
        outputs: For the simulations of each level m the outputs of levels 0 to m, each
            of shape `(n_m, *x_shape)`; NaN where unknown.
        seed: Seed of the fits.
        num_folds: Number of folds.
        train_options: Arguments of `train`.

    Returns:
        Losses, shape `(n_m, m + 1)` for each level, and the number of the fit of each
        simulation, shape `(n_m,)`.
    """
    outputs = _aligned(trainer, simulations, outputs)
    is_trained = trainer._neural_net is not None
    num_folds = 1 if is_trained else num_folds
    folds = [np.arange(len(data)) % num_folds for data in simulations]
    losses = [np.full((len(data), m + 1), np.nan) for m, data in enumerate(simulations)]
    for fold in range(num_folds):
        fit = trainer
        if not is_trained:
            others = [np.flatnonzero(of != fold)[:_MAX_TRAINING] for of in folds]
            both_sides = [
                (data.theta[rows], side[rows])
                for data, sides, rows in zip(simulations, outputs, others)
                for side in sides[-2:]
            ]
            fit, fit_seed = _copied(trainer), derive_seed(seed, _FIT_STREAM, fold)
            with seeded(fit_seed), redirect_stdout(io.StringIO()):
                fit.append_simulations(*map(torch.cat, zip(*both_sides)))
                fit.train(**train_options)
        for data, sides, fold_of, table in zip(simulations, outputs, folds, losses):
            mine = np.flatnonzero(fold_of == fold)
            for level, x in enumerate(sides):
                table[mine, level] = _losses(fit, data.theta[mine], x[mine], seed)
    return losses, folds


def _copied(trainer: NeuralInference) -> NeuralInference:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sbi warns of a copy
        copied = deepcopy(trainer)
    # not copied by sbi; the builder may hold an embedding net, which is not shared
    copied._tracker = SilentTracker()
    builder = trainer._build_neural_net
    copied._build_neural_net = cloudpickle.loads(cloudpickle.dumps(builder))
    return copied


@torch.no_grad()
def _losses(fit: NeuralInference, theta: Tensor, x: Tensor, seed: int) -> np.ndarray:
    """Loss of each simulation, shape `(n,)`; NaN where x is NaN."""
    network = fit._neural_net
    assert network is not None
    was_training = network.training
    network.eval()
    device = next((p.device for p in network.parameters()), theta.device)
    known = x.isfinite().flatten(1).all(dim=1)
    values = np.full(len(x), np.nan)
    for part in torch.nonzero(known)[:, 0].split(_CHUNK):
        sides = theta[part].to(device), x[part].to(device)
        if isinstance(fit, LikelihoodEstimatorTrainer):
            sides = sides[::-1]
        # a random loss uses the same random numbers for all levels of a simulation
        with seeded(derive_seed(seed, _LOSS_STREAM)):
            losses = network.loss(sides[0], condition=sides[1])
        values[part.numpy()] = losses.double().cpu().numpy()
    network.train(was_training)
    return values


def _aligned(
    trainer: NeuralInference,
    simulations: MultilevelSimulations,
    outputs: Sequence[Sequence[Tensor]],
) -> Sequence[Sequence[Tensor]]:
    """Outputs, with lower levels mapped if the trainer maps them by pairs."""
    config = getattr(trainer, "_config", None)
    if not isinstance(config, MultilevelConfig) or config.alignment != "affine":
        return outputs
    places = [(level, False) for level in range(len(simulations))]
    maps = fit_alignments("affine", simulations, places)
    return [
        [maps[level](data.theta, x)[1] for level, x in enumerate(sides)]
        for data, sides in zip(simulations, outputs)
    ]
