"""How rows of several levels are appended to a trainer of sbi."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, overload

import torch
from sbi.inference.trainers.base import NeuralInference
from sbi.utils import RestrictedPrior
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    merge_rows,
)
from sbi_multilevel.validation import (
    check_levels_are_consecutive,
    check_paired,
    check_rows_fit,
    check_same_device,
)


class MultilevelDataMixin(NeuralInference):
    """Keeps the level of each set of rows beside sbi's own lists of simulations.

    The rows themselves live where sbi keeps them, in `_theta_roundwise` and
    `_x_roundwise`; only the level of an entry of these lists and its coarse side are
    added here.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._entry_levels: dict[int, int] = {}
        self._x_coarse: dict[int, Tensor] = {}
        super().__init__(*args, **kwargs)

    @property
    def multilevel_simulations(self) -> MultilevelSimulations | None:
        """The rows of all levels appended so far; `None` before the first."""
        if not self._entry_levels:
            return None
        parts: dict[int, list[LevelSimulations]] = defaultdict(list)
        for entry in self._entry_levels:
            parts[self._entry_levels[entry]].append(self._rows_of(entry))
        levels = (merge_rows(parts[level]) for level in sorted(parts))
        return MultilevelSimulations(tuple(levels))

    @overload
    def append_multilevel_simulations(
        self,
        theta: MultilevelSimulations,
        *,
        proposal: Any = None,
        data_device: str | None = None,
    ) -> Self: ...

    @overload
    def append_multilevel_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        x_coarse: Tensor | None = None,
        *,
        level: int,
        proposal: Any = None,
        data_device: str | None = None,
    ) -> Self: ...

    def append_multilevel_simulations(
        self,
        theta: MultilevelSimulations | Tensor,
        x: Tensor | None = None,
        x_coarse: Tensor | None = None,
        *,
        level: int | None = None,
        proposal: Any = None,
        data_device: str | None = None,
    ) -> Self:
        r"""Store rows of all levels, or of one level, for later training.

        Args:
            theta: All levels at once, as `simulate_multilevel` returns them; or the
                parameters of the rows of one level, shape `(n, d_theta)`.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            x_coarse: Outputs of the simulator of `level - 1` at the same theta and
                noise, shape `(n, *x_shape)`. Required above level 0.
            level: Level of the rows, 0 being the cheapest. Levels are appended in
                rising order; more rows of a level may follow at any time.
            proposal: What theta was drawn from. Only the prior (or `None`, which means
                the prior) and its restrictions are possible: the telescoping loss has
                no correction for other proposals.
            data_device: Where to store the data; the device of training by default.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the rows do not fit each other or those appended before.
                Nothing is stored then.
        """
        self._check_single_round(proposal)
        if isinstance(theta, MultilevelSimulations):
            if x is not None or x_coarse is not None or level is not None:
                raise ValueError(
                    "x, x_coarse and level were passed beside MultilevelSimulations, "
                    "which hold them already. Pass one or the other."
                )
            parts = list(theta)
        elif x is None or level is None:
            raise ValueError(
                f"x is {x if x is None else 'given'} and level is {level}, but rows of "
                "one level need theta, x, level=..., and above level 0 x_coarse."
            )
        else:
            parts = [LevelSimulations(level, theta, x, x_coarse)]
        self._check_appended(parts, data_device)
        for rows in parts:
            self._append_rows(rows, data_device)
        return self

    def append_lowfidelity_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        level: int = 0,
        data_device: str | None = None,
    ) -> Self:
        """Store unpaired rows of a cheaper simulator for later training.

        Args:
            theta: Parameters drawn from the prior, shape `(n, d_theta)`.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            level: Level of the rows. The multilevel recipe can use unpaired rows of
                level 0 only.
            data_device: Where to store the data; the device of training by default.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the rows do not fit. Nothing is stored then.
        """
        if level != 0:
            raise ValueError(
                f"level={level} was passed, but unpaired rows above level 0 cannot "
                "enter a telescoping sum. Simulate level "
                f"{level} and the level below on the same theta and noise, and use "
                "`append_multilevel_simulations`."
            )
        return self.append_multilevel_simulations(
            theta, x, level=level, data_device=data_device
        )

    def _check_single_round(self, proposal: Any) -> None:
        if self._data_round_index and max(self._data_round_index) > 0:
            raise ValueError(
                "The trainer already holds simulations of a later round (drawn from a "
                "proposal). Multilevel data can only be used with simulations from the "
                "prior: use a new trainer for them."
            )
        source = proposal._prior if isinstance(proposal, RestrictedPrior) else proposal
        if proposal is not None and (source is None or source is not self._prior):
            raise ValueError(
                f"proposal is a {type(proposal).__name__}, but multilevel data must be "
                "drawn from the prior or a `RestrictedPrior` of it: the atomic "
                "(multi-round) loss does not telescope over levels. Leave `proposal` "
                "out, and draw theta from the prior."
            )

    def _check_appended(
        self, parts: list[LevelSimulations], data_device: str | None
    ) -> None:
        known = set(self._entry_levels.values())
        if len(self._entry_levels) != len(self._theta_roundwise):
            raise ValueError(
                "`append_simulations` was called before. Its rows have no level and no "
                "partner below, so they cannot enter a telescoping sum: use a new "
                "trainer, and append them as pairs (or as level 0)."
            )
        check_levels_are_consecutive(sorted(known | {rows.level for rows in parts}))
        first = self._rows_of(0) if known else parts[0]
        for rows in parts:
            check_paired(rows)
            check_rows_fit(rows, first)
        if known:
            device = torch.device(data_device or self._device)
            check_same_device(
                torch.empty(0, device=device), first.theta, parts[0].level
            )

    def _append_rows(self, rows: LevelSimulations, data_device: str | None) -> None:
        entry = len(self._theta_roundwise)
        self.append_simulations(rows.theta, rows.x, data_device=data_device)
        self._entry_levels[entry] = rows.level
        if rows.x_coarse is not None:
            self._x_coarse[entry] = rows.x_coarse.to(self._x_roundwise[entry].device)

    def _rows_of(self, entry: int) -> LevelSimulations:
        return LevelSimulations.trusted(
            self._entry_levels[entry],
            self._theta_roundwise[entry],
            self._x_roundwise[entry],
            self._x_coarse.get(entry),
        )

    def _check_trainable(self) -> MultilevelSimulations:
        """All rows, or an error that says why they cannot be trained on."""
        simulations = self.multilevel_simulations
        assert simulations is not None
        if len(self._entry_levels) != len(self._theta_roundwise):
            raise ValueError(
                "`append_simulations` was called beside multilevel rows. Rows without "
                "a level cannot enter a telescoping sum: append them as pairs of the "
                "highest level with `append_multilevel_simulations`, in a new trainer."
            )
        if len(simulations) < 2:
            raise ValueError(
                f"Only level 0 was appended ({len(simulations[0])} rows). Append pairs "
                "of level 1, or, if there is one simulator only, `append_simulations`."
            )
        return simulations
