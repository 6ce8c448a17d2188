"""The parameters of a round: where they are drawn, and what becomes known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.methods.sequential.coverage import coverage_levels
from sbi_multilevel.methods.sequential.members import MemberMixin
from sbi_multilevel.methods.sequential.proposing import Region, propose_active
from sbi_multilevel.methods.sequential.rounds import Proposals
from sbi_multilevel.simulation.noise import derive_seed, seeded

_PROPOSE, _ALIGN, _POOL, _COVERAGE = 11, 14, 16, 17  # streams of seeds


class DrawMixin(MemberMixin):
    """Draws the parameters of a round from the region of the round."""

    def _region(self, posterior: Any) -> Region:
        """Where the parameters of this round are drawn."""
        if self._round == 0:
            return Region(self._prior, self._truncation)
        truncated = self._truncation.truncate(posterior, self._prior)
        return Region(self._prior, self._truncation, truncated)

    def _region_again(self) -> Region:
        """The region of this round, the same at each call."""
        with seeded(derive_seed(self._seed, _ALIGN, self._round)):
            return self._region(self.build_posterior() if self._round > 0 else None)

    def _draw(self, num: int, is_active: bool = True) -> Proposals:
        """Proposals of this round; which they are depends on how many were drawn."""
        index, acquisition = self._num_drawn, self._acquisition if is_active else None
        self._num_drawn += 1
        if acquisition is not None and self._round == 0:
            if acquisition.first_round:
                self._pretrain()
            if self._members is None or not acquisition.first_round:
                acquisition = None
        with seeded(derive_seed(self._seed, _PROPOSE, self._round, index)):
            if acquisition is None and self._round == 0:
                return self._region(None).draw(num)
            posterior = self.build_posterior()
            region = self._region(posterior)
            if acquisition is None:
                return region.draw(num)
            pool = self._pool(index) if acquisition.fixed_pool else None
            return propose_active(num, region, posterior, acquisition, pool)

    def _pool(self, index: int) -> Tensor:
        """The pool of active points, the same in all rounds.

        Proposals after the first of a round have pools of their own, so that no point
        is acquired twice in a round.
        """
        assert self._acquisition is not None
        with seeded(derive_seed(self._seed, _POOL, index)):
            return self._prior.sample((self._acquisition.pool_size,))

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

    def _coverage_of_round(self, region: Callable[[], Region]) -> list[float]:
        """Levels at rows of this round, which the networks were not trained on."""
        pending = self._pending
        if pending is None or self._members is None or self._num_coverage_rows == 0:
            return []
        theta = torch.cat([rows.theta for rows in self._rows_of_round])
        x = torch.cat([rows.x for rows in self._rows_of_round])
        rows = pending.is_passive(theta).nonzero()[: self._num_coverage_rows, 0]
        return self._coverage_at(theta[rows], x[rows], region()).tolist()

    def _coverage_at(self, theta: Tensor, x: Tensor, region: Region) -> Tensor:
        rows = region.inside(theta)
        with seeded(derive_seed(self._seed, _COVERAGE, self._round)):
            posterior = self.build_posterior()
            return coverage_levels(posterior, theta[rows], x[rows], region.inside)
