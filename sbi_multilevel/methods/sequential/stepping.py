"""The steps of a round: propose, append what was simulated, train."""

from __future__ import annotations

from functools import cache

from sbi.inference import DirectPosterior, EnsemblePosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.data.validation import (
    check_inside,
    check_rows_fit,
    check_tensor,
    has_support,
)
from sbi_multilevel.methods.sequential.drawing import DrawMixin
from sbi_multilevel.simulation.noise import seeded
from sbi_multilevel.utils.argument_types import check_types


class StepMixin(DrawMixin):
    """Goes through a round step by step."""

    def propose(self, num_simulations: int) -> Tensor:
        """Parameters to simulate next.

        In the first round they are draws from the prior, then from the truncated
        prior, the last of them active points if there is an acquisition, which
        pre-trains the networks if that is not done. More can be asked for in the same
        round.

        Args:
            num_simulations: How many.

        Returns:
            Theta, shape `(num_simulations, d_theta)`.

        Raises:
            RuntimeError: If the truncated prior accepts nothing.
        """
        check_types(StepMixin.propose, locals())
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
        self._check_rows(rows, self._rows[0] if self._rows else rows)
        if self._acquisition is not None and self._acquisition.correct:
            rows = self._weighted(rows)
        self._rows.append(rows)
        self._new_rows += len(rows)
        return self

    def train(self) -> list[ConditionalDensityEstimator]:
        """Pre-train if that is not done, then fine-tune on high-fidelity rows.

        Expected coverage is computed in between, see `summary`.

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
        region = cache(self._region_again)  # found once, and only if it is needed
        coverage = self._coverage_of_round(region)
        self._members, self._low_weights = self._fine_tune(region)
        self._low_sums = self._sums_of_low_rows
        pending = self._pending
        self.summary["num_simulations"].append(self._new_rows)
        self.summary["acceptance_rate"].append(pending.acceptance if pending else 1.0)
        self.summary["num_active"].append(
            int(pending.is_active.sum()) if pending else 0
        )
        failures = list(pending.failures.values()) if pending else []
        self.summary["failures"].append(failures)
        self.summary["coverage"].append(coverage)
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

    def expected_coverage(self, theta: Tensor, x: Tensor) -> Tensor:
        """Level of the smallest region of the posterior that holds each true theta.

        If the posterior is calibrated on the region of this round, levels are uniform
        on (0, 1): `(levels < 0.9).float().mean()` is the expected coverage of regions
        of 90 %. Call it before `train`, which does the same at rows that were appended.

        Args:
            theta: Parameters that `propose` returned in this round, shape
                `(n, d_theta)`. Active points are left out.
            x: Outputs of the highest simulator, shape `(n, *x_shape)`.

        Returns:
            Levels, shape `(m,)`.

        Raises:
            RuntimeError: If nothing was trained or proposed yet.
        """
        if self._pending is None:
            raise RuntimeError(
                "Nothing was proposed in this round. Simulate the parameters of "
                "`propose()`, and pass them with what was simulated."
            )
        rows = LevelSimulations(1, theta, x)
        self._check_x(rows.x)
        rows = rows[self._pending.is_passive(rows.theta)]
        return self._coverage_at(rows.theta, rows.x, self._region_again())

    def _check_rows(self, rows: LevelSimulations, first: LevelSimulations) -> None:
        """Raise unless rows fit the observation, the prior and the first rows."""
        self._check_x(rows.x)
        self._check_theta(rows.theta)
        if has_support(self._prior):
            check_inside(self._prior, rows)
        check_rows_fit(rows, first)

    def _check_theta(self, theta: Tensor) -> None:
        with seeded(0):
            expected = self._prior.sample((1,)).shape[1:]
        if theta.shape[1:] != expected:
            raise ValueError(
                f"theta has shape {tuple(theta.shape[1:])} a row, but the prior draws "
                f"{tuple(expected)}. Pass parameters of `propose()`."
            )

    def _check_x(self, x: Tensor) -> None:
        check_tensor("x", x, 0)
        if x.shape[1:] == self.x_o.shape:  # an observation with one channel
            self.x_o = self.x_o.unsqueeze(0)
        if x.shape[1:] != self.x_o.shape[1:]:
            raise ValueError(
                f"x has shape {tuple(x.shape[1:])} a row, but the observation x_o has "
                f"{tuple(self.x_o.shape[1:])}. Summarise both in the same way."
            )
