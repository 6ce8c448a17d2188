"""How rows of several levels are appended to a trainer of sbi."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from sbi.inference.trainers.base import NeuralInference
from sbi.utils import RestrictedPrior
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.argument_types import check_types
from sbi_multilevel.parameters import LevelParameters
from sbi_multilevel.recipes import Recipe
from sbi_multilevel.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    merge_levels,
)
from sbi_multilevel.trainers.appending import incomplete, warn_of_repeats
from sbi_multilevel.validation import (
    check_device,
    check_levels_are_consecutive,
    check_paired,
    check_plain_rows,
    check_rows_fit,
    check_same_device,
)


class MultilevelDataMixin(NeuralInference):
    """Keeps the level of each set of rows beside sbi's own lists of simulations.

    The rows themselves live where sbi keeps them, in `_theta_roundwise` and
    `_x_roundwise`; only the level of an entry of these lists, its coarse side and its
    weights are added here. Entries without a level, those of `append_simulations`, are
    of the highest level.
    """

    _recipe: Recipe

    def __init__(
        self,
        *args: Any,
        parameters: Mapping[int, Sequence[str]] | None = None,
        **kwargs: Any,
    ):
        self._entry_levels: dict[int, int] = {}
        self._x_coarse: dict[int, Tensor] = {}
        self._weights: dict[int, Tensor] = {}
        self._low_levels: set[int] = set()
        self._parameters = None if parameters is None else LevelParameters(parameters)
        super().__init__(*args, **kwargs)

    @property
    def multilevel_simulations(self) -> MultilevelSimulations | None:
        """The rows of all levels appended so far; `None` before the first."""
        if not self._entry_levels:
            return None
        return merge_levels(self._rows_of(entry) for entry in self._entry_levels)

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
                noise, shape `(n, *x_shape)`. The multilevel recipe requires it above
                level 0, transfer does not.
            level: Level of the rows, 0 being the cheapest. Levels are appended in
                rising order; more rows of a level may follow at any time.
            proposal: What theta was drawn from. Only the prior (or `None`, which means
                the prior) and its restrictions are possible: there is no correction
                for other proposals that holds on several levels.
            data_device: Where to store the data; the device of training by default.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the rows do not fit each other or those appended before.
                Nothing is stored then.

        Warns if rows of a level are there already, with the same theta and the same x.
        """
        check_types(
            MultilevelDataMixin.append_multilevel_simulations, locals(), but=("theta",)
        )
        check_device(data_device)
        self._check_single_round(proposal)
        if isinstance(theta, MultilevelSimulations):
            if x is not None or x_coarse is not None or level is not None:
                raise ValueError(
                    "x, x_coarse and level were passed beside MultilevelSimulations, "
                    "which hold them already. Pass one or the other."
                )
            parts = list(theta)
        elif x is None or level is None:
            raise ValueError(incomplete(theta, x, level))
        else:
            theta = self._complete(theta, level)
            parts = [LevelSimulations(level, theta, x, x_coarse)]
        self._check_appended(parts, data_device)
        warn_of_repeats(parts, self._appended)
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
            theta: Parameters drawn from the prior, shape `(n, d_theta)`, or, where the
                trainer was given `parameters`, the columns of this level.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            level: Level of the rows. The multilevel recipe can use unpaired rows of
                level 0 only. The highest level is above all of these.
            data_device: Where to store the data; the device of training by default.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the rows do not fit. Nothing is stored then.
        """
        check_types(MultilevelDataMixin.append_lowfidelity_simulations, locals())
        if level != 0 and self._recipe.needs_pairs:
            raise ValueError(
                f"level={level} was passed, but unpaired rows above level 0 cannot "
                "enter a telescoping sum. Simulate level "
                f"{level} and the level below on the same theta and noise, and use "
                "`append_multilevel_simulations`, or the recipe 'transfer'."
            )
        self.append_multilevel_simulations(
            theta, x, level=level, data_device=data_device
        )
        self._low_levels.add(level)
        return self

    def append_weighted_simulations(
        self, theta: Tensor, x: Tensor, weights: Tensor
    ) -> Self:
        r"""Store rows of the highest level whose theta is no draw from the prior.

        Args:
            theta: Parameters, shape `(n, d_theta)`.
            x: Outputs of the highest simulator, shape `(n, *x_shape)`.
            weights: Weight of each row in the loss, shape `(n,)`, e.g. the importance
                weights :math:`p(\theta) / \tilde p(\theta)`.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the rows do not fit, or the recipe needs pairs.
        """
        if self._recipe.needs_pairs:
            raise ValueError(
                "weights were passed, but rows without a partner cannot enter a "
                "telescoping sum. Use the recipe 'transfer'."
            )
        rows = LevelSimulations(0, theta, x, weights=weights)
        entry = len(self._theta_roundwise)
        self.append_simulations(rows.theta, rows.x)
        self._weights[entry] = rows.loss_weights.to(self._x_roundwise[entry].device)
        return self

    def _complete(self, theta: Tensor, level: int) -> Tensor:
        if self._parameters is None:
            return theta
        return self._parameters.complete(theta, level, self._prior)

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
                "(multi-round) loss has no meaning over several levels. Leave "
                "`proposal` out, and draw theta from the prior."
            )

    def _check_appended(
        self, parts: list[LevelSimulations], data_device: str | None
    ) -> None:
        known = set(self._entry_levels.values())
        if self._recipe.needs_pairs and len(self._entry_levels) != len(
            self._theta_roundwise
        ):
            raise ValueError(
                "`append_simulations` was called before. Its rows have no level and no "
                "partner below, so they cannot enter a telescoping sum: use a new "
                "trainer, and append them as pairs (or as level 0)."
            )
        check_levels_are_consecutive(sorted(known | {rows.level for rows in parts}))
        first = self._rows_of(0) if self._theta_roundwise else parts[0]
        for rows in parts:
            if self._recipe.needs_pairs:
                check_paired(rows)
            check_rows_fit(rows, first)
        if self._theta_roundwise:
            device = torch.device(data_device or self._device)
            check_same_device(
                torch.empty(0, device=device), first.theta, parts[0].level
            )

    def _check_plain(self, theta: Tensor, x: Tensor, drops_invalid: bool) -> None:
        """Check rows of `append_simulations` beside those of levels."""
        if not self._entry_levels:
            return
        level = self._highest_level
        check_plain_rows(theta, x, level, drops_invalid)
        rows = LevelSimulations.trusted(level, theta, x)
        check_rows_fit(rows, self._rows_of(0))
        warn_of_repeats([rows], self._appended)

    @property
    def _appended(self) -> list[LevelSimulations]:
        return [self._rows_of(entry) for entry in range(len(self._theta_roundwise))]

    def _append_rows(self, rows: LevelSimulations, data_device: str | None) -> None:
        entry = len(self._theta_roundwise)
        super().append_simulations(  # pyright: ignore[reportAbstractUsage]
            rows.theta, rows.x, data_device=data_device
        )
        self._entry_levels[entry] = rows.level
        for store, column in (
            (self._x_coarse, rows.x_coarse),
            (self._weights, rows.weights),
        ):
            if column is not None:
                store[entry] = column.to(self._x_roundwise[entry].device)

    @property
    def _highest_level(self) -> int:
        """Level of the rows of `append_simulations`."""
        if not self._entry_levels:
            return 0
        above = [level + 1 for level in self._low_levels]
        return max([1, *self._entry_levels.values(), *above])

    def _rows_of(self, entry: int) -> LevelSimulations:
        return LevelSimulations.trusted(
            self._entry_levels.get(entry, self._highest_level),
            self._theta_roundwise[entry],
            self._x_roundwise[entry],
            self._x_coarse.get(entry),
            self._weights.get(entry),
        )

    def _check_trainable(self) -> MultilevelSimulations:
        """All rows as the recipe uses them, or why they cannot be trained on."""
        if max(self._data_round_index) > 0:
            self._check_single_round(None)
        parts = self._appended
        plain = len(parts) - len(self._entry_levels)
        if self._recipe.needs_pairs and plain:
            raise ValueError(
                "`append_simulations` was called beside multilevel rows, or after "
                "`warm_start`. Rows without a level cannot enter a telescoping sum: "
                "append them as pairs of the highest level with "
                "`append_multilevel_simulations`, in a new trainer, or use the recipe "
                "'transfer'."
            )
        for rows in parts:
            check_rows_fit(rows, parts[0])
        simulations = self._recipe.arrange(parts)
        if self._recipe.needs_pairs and len(simulations) < 2:
            raise ValueError(
                f"Only level 0 was appended ({len(simulations[0])} rows). Append pairs "
                "of level 1, or, if there is one simulator only, `append_simulations`."
            )
        return simulations
