r"""Truncated rounds with cheaper simulators (MF-TSNPE), and active learning (-AF).

For one observation :math:`x_o`: networks are pre-trained on low-fidelity rows, then in
each round high-fidelity rows are simulated from the prior truncated to where the
current posterior has its mass (`sbi_multilevel.sequential.truncation`), and the
networks fine-tuned on all rounds so far, each from its weights of the round before.
With an ensemble, part of a round can be simulated where its members disagree
(`sbi_multilevel.sequential.acquisition`).

Reference: Krouglova, Johnson, Confavreux, Deistler, Gonçalves (2026), *Multifidelity
simulation-based inference for computationally expensive simulators*, ICLR 2026,
arXiv:2502.08416, Algorithms 2 and 3; Deistler, Gonçalves, Macke (2022), *Truncated
proposals for scalable and hassle-free simulation-based inference*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from sbi.inference import DirectPosterior, EnsemblePosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.argument_types import check_types
from sbi_multilevel.recipes import Transfer, get_recipe
from sbi_multilevel.sequential.acquisition import Acquisition
from sbi_multilevel.sequential.proposing import propose_active, propose_truncated
from sbi_multilevel.sequential.rounds import Proposals
from sbi_multilevel.sequential.running import RunMixin
from sbi_multilevel.sequential.truncation import Truncation
from sbi_multilevel.simulation.arguments import check_seed
from sbi_multilevel.simulation.noise import (
    derive_seed,
    seeded,
)
from sbi_multilevel.simulations import LevelSimulations
from sbi_multilevel.validation import (
    check_inside,
    check_level,
    check_observation,
    check_rows_fit,
    check_tensor,
    has_support,
)

_PROPOSE, _FILL = 11, 15  # streams of seeds


class MFTSNPE(RunMixin):
    r"""Posterior of one observation, from rounds of simulations near it.

    Step by step, simulations made wherever you like: `propose`, `append_simulations`,
    `train`, and again; or, given the simulator, `run`. The object can be pickled
    between all of these steps.

    Args:
        prior: Prior over the parameters of the highest level.
        x_o: The observation, shape `x_shape` or `(1, *x_shape)`.
        density_estimator: Name of a network, or a builder, as for `MFNPE`.
        recipe: Settings of pre-training and fine-tuning. Levels are aligned over the
            same parameters: the moments of the high-fidelity rows are matched to those
            of low-fidelity rows weighted to the rounds' truncated priors. Without
            low-fidelity rows there is no alignment.
        num_members: Networks; more than one make an ensemble.
        acquisition: How active points are chosen; none by default. Needs two members.
        truncation: How the prior is truncated.
        parameters: Names of the columns of theta of each level, as for `MFNPE`.
        seed: Seed of all that is drawn here. The same seed, rows and settings give the
            same posterior, in one go or resumed.
        num_workers: Processes that train members at the same time.
        train_options: Arguments of `MFNPE.train`.

    Raises:
        ValueError: If the observation has NaN, or the settings do not fit.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFTSNPE, Truncation
        >>> def dear(theta, noise):
        ...     return theta + 0.1 * theta**2 + 0.3 * noise
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> theta = prior.sample((300,))
        >>> inference = MFTSNPE(
        ...     prior,
        ...     torch.zeros(2),
        ...     density_estimator="mdn",
        ...     truncation=Truncation(num_samples=1_000),
        ...     train_options={"max_num_epochs": 2},
        ... )
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta, theta + 0.3 * torch.randn(300, 2)
        ... )
        >>> posterior = inference.run(
        ...     dear,
        ...     num_simulations=40,
        ...     num_rounds=2,
        ...     noise=lambda n, generator: torch.randn(n, 2, generator=generator),
        ...     show_progress_bars=False,
        ... )
        >>> posterior.sample((10,), show_progress_bars=False).shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        prior: Any,
        x_o: Tensor,
        density_estimator: Any = "nsf",
        *,
        recipe: str | Transfer = "transfer",
        num_members: int = 1,
        acquisition: Acquisition | None = None,
        truncation: Truncation | None = None,
        parameters: Mapping[int, Sequence[str]] | None = None,
        seed: int = 0,
        num_workers: int = 1,
        train_options: Mapping[str, Any] | None = None,
    ):
        check_types(MFTSNPE.__init__, locals(), but=("seed",))
        check_seed(seed)
        self._recipe = get_recipe(recipe)
        if not isinstance(self._recipe, Transfer):
            raise ValueError(
                f"recipe must be 'transfer' or a `Transfer(...)`, but is {recipe!r}: "
                "rows near one observation do not telescope with rows from the prior."
            )
        correct = acquisition is not None and acquisition.correct
        if correct and truncation is not None and truncation.sample_with == "sir":
            raise ValueError(
                "Acquisition(correct=True) needs the acceptance rate of the truncated "
                "prior, which sample_with='sir' does without. Use one of them."
            )
        if num_members < 1 or (acquisition is not None and num_members < 2):
            raise ValueError(
                f"num_members is {num_members}, but must be >= 1, and >= 2 for an "
                "acquisition, which looks at where members disagree."
            )
        self.x_o = check_observation(x_o)
        self._prior, self._density_estimator = prior, density_estimator
        self._num_members, self._acquisition = num_members, acquisition
        self._truncation = truncation or Truncation()
        self._seed, self._num_workers = seed, num_workers  # of training
        self._train_options = {"force_first_round_loss": True, **(train_options or {})}
        self._parameters = parameters
        self._low = self._trainer(self._recipe, parameters)
        self._low_sums: tuple[float, ...] | None = None
        self._members: list[ConditionalDensityEstimator] | None = None
        self._rows: list[LevelSimulations] = []
        self._new_rows, self._round, self._num_drawn = 0, 0, 0
        self._low_weights: Tensor | None = None
        self._pending: Proposals | None = None
        self.summary: dict[str, list] = {
            name: []
            for name in ("num_simulations", "acceptance_rate", "num_active", "failures")
        }

    def append_lowfidelity_simulations(
        self, theta: Tensor, x: Tensor, level: int = 0
    ) -> Self:
        """Store rows of a cheaper simulator, drawn from the prior, for pre-training.

        Args:
            theta: Parameters drawn from the prior, shape `(n, d_theta)`, or, where
                `parameters` were given, the columns of this level.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            level: Level of the rows; the highest level is above all of these.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If the rows do not fit, or the first round is over.
        """
        if self._round > 0:
            raise ValueError(
                "Low-fidelity rows were appended after the first round. Append all of "
                "them before `train` or `run`, or start anew."
            )
        check_level(level)
        self._check_x(x)
        entry = len(self._low._theta_roundwise)
        with seeded(derive_seed(self._seed, _FILL, level, entry)):  # missing columns
            self._low.append_lowfidelity_simulations(theta, x, level)
        return self

    def warm_start(
        self,
        estimators: ConditionalDensityEstimator | Sequence[ConditionalDensityEstimator],
    ) -> Self:
        """Start from networks that were pre-trained elsewhere.

        Low-fidelity rows that are appended, too, are not trained on then, but levels
        are aligned by them.

        Args:
            estimators: One for all members, or one for each, e.g. those of
                `train_ensemble(...).estimators`.

        Raises:
            ValueError: If their number does not fit, or their shapes do not.
        """
        check_types(MFTSNPE.warm_start, locals())
        if isinstance(estimators, ConditionalDensityEstimator):
            estimators = [estimators] * self._num_members
        if len(estimators) != self._num_members:
            raise ValueError(
                f"estimators are {len(estimators)}, but num_members is "
                f"{self._num_members}. Pass one, or one for each member."
            )
        self._members = [self._take_over(estimator) for estimator in estimators]
        return self

    # One round

    def propose(self, num_simulations: int) -> Tensor:
        """Parameters to simulate next.

        In the first round they are draws from the prior, then from the truncated
        prior, the last of them active points if there is an acquisition. More can be
        asked for in the same round.

        Args:
            num_simulations: How many.

        Returns:
            Theta, shape `(num_simulations, d_theta)`.

        Raises:
            RuntimeError: If the truncated prior accepts nothing.
        """
        check_types(MFTSNPE.propose, locals())
        if num_simulations < 1:
            raise ValueError(f"num_simulations must be >= 1, but is {num_simulations}.")
        proposals = self._draw(num_simulations)
        if self._pending is None:
            self._pending = proposals
        else:
            self._pending.extend(proposals)
        return proposals.theta

    def append_simulations(
        self, theta: Tensor, x: Tensor, x_coarse: Tensor | None = None
    ) -> Self:
        """Store high-fidelity rows of this round.

        Args:
            theta: Parameters that were proposed in this round; some may be missing.
            x: Outputs of the highest simulator, shape `(n, *x_shape)`. Rows with NaN or
                inf are dropped with a warning.
            x_coarse: Outputs of the simulator a level below on the same theta and
                noise; they are trained on before x is.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If the rows do not fit; nothing is stored then.
        """
        rows = LevelSimulations(1, theta, x, x_coarse)
        self._check_x(rows.x)
        if has_support(self._prior):
            check_inside(self._prior, rows)
        if self._rows:
            check_rows_fit(rows, self._rows[0])
        if self._acquisition is not None and self._acquisition.correct:
            rows = self._weighted(rows)
        self._rows.append(rows)
        self._new_rows += len(rows)
        return self

    def train(self) -> list[ConditionalDensityEstimator]:
        """Pre-train if that is not done, then fine-tune on the rows of all rounds.

        Returns:
            The networks of the members.

        Raises:
            RuntimeError: If there are no new rows.
        """
        if self._new_rows == 0:
            raise RuntimeError(
                "No high-fidelity rows were appended since the last training. Simulate "
                "the parameters of `propose()` and call `append_simulations`."
            )
        self._pretrain()
        self._members, self._low_weights = self._fine_tune()
        self._low_sums = self._sums_of_low_rows
        pending = self._pending
        self.summary["num_simulations"].append(self._new_rows)
        self.summary["acceptance_rate"].append(pending.acceptance if pending else 1.0)
        self.summary["num_active"].append(
            int(pending.is_active.sum()) if pending else 0
        )
        failures = list(pending.failures.values()) if pending else []
        self.summary["failures"].append(failures)
        self._new_rows, self._pending, self._num_drawn = 0, None, 0
        self._round += 1
        return self._members

    def build_posterior(self) -> DirectPosterior | EnsemblePosterior:
        """sbi's posterior of the members, with the observation as its default x.

        Raises:
            RuntimeError: If nothing was trained yet.
        """
        if self._members is None:
            raise RuntimeError("Nothing was trained yet. Call `train` or `run` first.")
        posteriors = [DirectPosterior(net, self._prior) for net in self._members]
        posterior = (
            EnsemblePosterior(posteriors) if len(posteriors) > 1 else posteriors[0]
        )
        return posterior.set_default_x(self.x_o)

    # Inside

    def _draw(self, num: int, is_active: bool = True) -> Proposals:
        """Proposals of this round; which they are depends on how many were drawn."""
        seed = derive_seed(self._seed, _PROPOSE, self._round, self._num_drawn)
        self._num_drawn += 1
        with seeded(seed):
            if self._round == 0:
                return Proposals(self._prior.sample((num,)), torch.ones(num), 1.0)
            where = (num, self._prior, self.build_posterior(), self._truncation)
            if self._acquisition is None or not is_active:
                return propose_truncated(*where)
            return propose_active(*where, self._acquisition)

    def _weighted(self, rows: LevelSimulations) -> LevelSimulations:
        """Rows with importance weights, without those that have none."""
        if self._pending is None:
            raise ValueError(
                "theta was not proposed in this round. Call `propose()` first, or use "
                "`Acquisition(correct=False)`."
            )
        weights = self._pending.weights_of(rows.theta)
        rows = replace(rows, weights=weights.clamp_min(1e-12))
        return rows[weights > 0]  # outside of the region rows say nothing about x_o

    def _check_x(self, x: Tensor) -> None:
        check_tensor("x", x, 0)
        if x.shape[1:] == self.x_o.shape:  # an observation with one channel
            self.x_o = self.x_o.unsqueeze(0)
        if x.shape[1:] != self.x_o.shape[1:]:
            raise ValueError(
                f"x has shape {tuple(x.shape[1:])} a row, but the observation x_o has "
                f"{tuple(self.x_o.shape[1:])}. Summarise both in the same way."
            )
