r"""Ensembles whose members hold out different simulations for early stopping.

With ten held-out simulations early stopping is nearly random, and the held-out
simulations are not trained on. The members of an ensemble start from different weights
and hold out different folds, so that together they use all simulations. Their mixture

.. math:: q(\theta \mid x) = \frac1E \sum_{e=1}^{E} q_e(\theta \mid x)

has at least the mean expected log score of its members (Jensen), and wider tails where
they disagree (Lakshminarayanan et al. 2017; Hermans et al. 2022).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle
import joblib
import torch
from joblib import Parallel, delayed
from joblib.parallel import ThreadingBackend
from sbi.inference import EnsemblePosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator

from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.history import TrainingRun, training_runs
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel.utils.argument_types import check_types
from sbi_multilevel.utils.seeds import derive_seed, seeded

if TYPE_CHECKING:
    from sbi_multilevel.training.trainer import MultilevelTrainer

# A tracker has open files. The builder of the network is passed separately, as is the
# prior, which sbi compares by identity.
_LEFT_OUT = ("_tracker", "_build_neural_net", "_prior")


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Trained members.

    Args:
        members: Trainers, each trained on other folds of the same simulations.
    """

    members: tuple[MultilevelTrainer, ...]

    @property
    def estimators(self) -> list[ConditionalDensityEstimator]:
        """The networks of the members."""
        return [member._neural_net for member in self.members]

    def build_posterior(
        self,
        sample_with: str | None = None,
        posterior_parameters: Any = None,
        weights: Sequence[float] | None = None,
    ) -> EnsemblePosterior:
        """sbi's ensemble of the posteriors of the members.

        Args:
            sample_with: As in `build_posterior` of the trainer; its default if `None`.
            posterior_parameters: As in `build_posterior` of the trainer.
            weights: Weight of each member; equal if `None`.
        """
        check_types(Ensemble.build_posterior, locals())
        options: dict[str, Any] = {"posterior_parameters": posterior_parameters}
        if sample_with is not None:
            options["sample_with"] = sample_with
        posteriors = [member.build_posterior(**options) for member in self.members]
        return EnsemblePosterior(
            posteriors, None if weights is None else [float(w) for w in weights]
        )


def train_ensemble(
    inference: MultilevelTrainer,
    num_members: int = 5,
    *,
    seed: int = 0,
    num_workers: int = 1,
    train_options: Mapping[str, Any] | None = None,
) -> Ensemble:
    r"""Train copies of a trainer on different validation folds.

    Args:
        inference: Any trainer of this package, with its simulations appended, not yet
            trained. It stays as it is.
        num_members: Members E.
        seed: Seed of the folds, the networks and the batches. A member is the same
            whatever the number of members or workers.
        num_workers: Processes that train members at the same time (joblib), one thread
            each. The builder of the network must be picklable by cloudpickle.
        train_options: Arguments of `inference.train`, e.g. `{"learning_rate": 1e-3}`.

    Returns:
        The trained members; `build_posterior` makes an `EnsemblePosterior` of sbi.

    Raises:
        ValueError: If `num_members` is not positive, or `inference` was trained.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNPE, train_ensemble
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> theta = prior.sample((200,))
        >>> x = theta + 0.3 * torch.randn(200, 2)
        >>> inference = MFNPE(prior, density_estimator="mdn", show_progress_bars=False)
        >>> inference = inference.append_lowfidelity_simulations(theta, x)
        >>> inference = inference.append_simulations(theta[:40], x[:40] + 0.1)
        >>> ensemble = train_ensemble(
        ...     inference, num_members=2, train_options={"max_num_epochs": 2}
        ... )
        >>> posterior = ensemble.build_posterior().set_default_x(torch.zeros(1, 2))
        >>> posterior.sample((10,), show_progress_bars=False).shape
        torch.Size([10, 2])
    """
    check_types(train_ensemble, locals())
    if not hasattr(inference, "_plan"):
        raise TypeError(
            f"inference is a {type(inference).__name__}, but must be a trainer of this "
            "package, e.g. `MFNPE(prior)`, with its simulations appended."
        )
    if num_members < 1:
        raise ValueError(f"num_members must be >= 1, but is {num_members}.")
    if seed < 0 or num_workers == 0:
        raise ValueError(
            f"seed must be >= 0, and num_workers >= 1, or -1 for all cores, but they "
            f"are {seed} and {num_workers}."
        )
    if inference._neural_net is not None:
        raise ValueError(
            "inference was trained already. Pass a new trainer with the same "
            "simulations; to start from its weights use `warm_start`."
        )
    if inference._config.is_ensemble:
        raise ValueError(
            f"A {type(inference).__name__} is an ensemble already. Call "
            "`inference.train()`; `HybridConfig(num_members=...)` sets its size."
        )
    folds = [Fold(index, seed) for index in range(num_members)]
    members = train_members(
        [inference] * num_members, folds, num_workers, train_options or {}
    )
    if inference._config.early_stopping or not inference._is_multilevel:
        runs = [training_runs(member.summary) for member in members]
        warn_of_limit(runs, (train_options or {}).get("max_num_epochs"))
    return Ensemble(tuple(members))


def train_members(
    trainers: Sequence[MultilevelTrainer],
    folds: Sequence[Fold],
    num_workers: int | None,
    train_options: Mapping[str, Any],
    when_done: Callable[[int, MultilevelTrainer], object] = lambda *_: None,
) -> list[MultilevelTrainer]:
    """Train a copy of each trainer on its own fold, seeded by the fold.

    Members do not warn of `max_num_epochs` themselves, see `warn_of_limit`.

    Args:
        trainers: Trainers with simulations; they stay as they are.
        folds: A fold for each.
        num_workers: Processes, one thread each; `None` leaves their number to
            `joblib.parallel_config`.
        train_options: Arguments of `train`.
        when_done: Called with the position of each member and the member when it is
            trained, e.g. to keep it.

    Returns:
        The trained copies, in the order of `trainers`.
    """
    shared = [(type(t), t._prior, t._build_neural_net) for t in trainers]
    jobs = [
        delayed(_train_member)(*parts, trainer_state(trainer), fold, train_options)
        for parts, trainer, fold in zip(shared, trainers, folds, strict=True)
    ]
    states = _pool(num_workers)(jobs)
    members = []
    for index, (parts, state) in enumerate(zip(shared, states)):
        members.append(_restore(*parts, state))
        when_done(index, members[-1])
    return members


def _pool(num_workers: int | None) -> Parallel:
    """Workers of joblib; processes where threads were configured.

    The random state and the output are those of a process, so that threads would train
    other networks than one worker does.
    """
    backend, count = joblib.parallel.get_active_backend()
    options: dict[str, Any] = {"n_jobs": num_workers, "return_as": "generator"}
    if isinstance(backend, ThreadingBackend):
        options |= {"n_jobs": num_workers or count, "backend": "loky"}
    return Parallel(**options)


def warn_of_limit(runs: Iterable[Sequence[TrainingRun]], limit: int | None) -> None:
    """Warn once if `max_num_epochs` cut the training of members off.

    Args:
        runs: The trainings of each member.
        limit: `max_num_epochs`.
    """
    stopped = [any(run.converged is False for run in each) for each in runs]
    if any(stopped):
        warnings.warn(
            f"Maximum number of epochs `max_num_epochs={limit}` reached by "
            f"{sum(stopped)} of {len(stopped)} networks before they had converged. "
            "Raise it, or leave it out.",
            stacklevel=3,
        )


def trainer_state(trainer: MultilevelTrainer) -> dict[str, Any]:
    """All of a trainer that can be sent to another process."""
    return {k: v for k, v in vars(trainer).items() if k not in _LEFT_OUT}


def _restore(
    cls: type[MultilevelTrainer], prior: Any, build: Any, state: dict[str, Any]
) -> MultilevelTrainer:
    trainer = object.__new__(cls)
    vars(trainer).update(
        state, _prior=prior, _build_neural_net=build, _tracker=SilentTracker()
    )
    return trainer


def _train_member(
    cls: type[MultilevelTrainer],
    prior: Any,
    build: Any,
    state: dict[str, Any],
    fold: Fold,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # the builder may hold an embedding net, which the members must not share
    build = cloudpickle.loads(cloudpickle.dumps(build))
    trainer = _restore(cls, prior, build, deepcopy(state))
    trainer._plan.fold, trainer._plan.reports_convergence = fold, False
    # sbi prints a line for each network that has converged
    quiet = contextlib.redirect_stdout(io.StringIO())
    try:
        with quiet, seeded(derive_seed(fold.seed, fold.index)):
            trainer.train(**options)
    finally:
        torch.set_num_threads(threads)
        trainer._plan.reports_convergence = True  # of later trainings
    return trainer_state(trainer)
