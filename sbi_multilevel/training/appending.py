"""How simulations of several levels are appended to a trainer of sbi."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from sbi.utils import RestrictedPrior
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.data.parameters import LevelParameters
from sbi_multilevel.data.priors import check_width
from sbi_multilevel.data.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    merge_levels,
)
from sbi_multilevel.data.validation import (
    check_device,
    check_levels_are_consecutive,
    check_paired,
    check_plain,
    check_same_device,
    check_same_shapes,
)
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.hooks import HookedTrainer
from sbi_multilevel.training.repeats import incomplete, warn_of_repeats
from sbi_multilevel.utils.argument_types import check_types


@dataclass
class Appended:
    """What sbi's lists of simulations lack, by the index of an entry of these lists.

    The simulations themselves live where sbi keeps them, in `_theta_roundwise` and
    `_x_roundwise`. Entries without a level, those of `append_simulations`, are of the
    highest level.

    Args:
        levels: Level of an entry.
        x_coarse: Outputs of the level below, of paired entries.
        weights: Weights in the loss, of weighted entries.
        low_fidelity: Levels of `append_lowfidelity_simulations`.
    """

    levels: dict[int, int] = field(default_factory=dict)
    x_coarse: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)
    low_fidelity: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.levels or self.weights)

    @property
    def highest(self) -> int:
        """Level of the simulations of `append_simulations`."""
        if not self.levels:
            return 0
        above = [level + 1 for level in self.low_fidelity]
        return max([1, *self.levels.values(), *above])


class AppendingTrainer(HookedTrainer):
    """Keeps the level of each set of simulations beside sbi's own lists."""

    _config: MethodConfig

    def __init__(
        self,
        *args: Any,
        parameters: Mapping[int, Sequence[str]] | None = None,
        **kwargs: Any,
    ):
        self._appended = Appended()
        self._parameters = None if parameters is None else LevelParameters(parameters)
        super().__init__(*args, **kwargs)

    @property
    def multilevel_simulations(self) -> MultilevelSimulations | None:
        """The simulations of all levels appended so far; `None` before the first."""
        if not self._appended.levels:
            return None
        return merge_levels(self._entry(index) for index in self._appended.levels)

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
        r"""Store simulations of all levels, or of one level, for later training.

        Args:
            theta: All levels at once, as `simulate_multilevel` returns them; or the
                parameters of the simulations of one level, shape `(n, d_theta)`.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            x_coarse: Outputs of the simulator of `level - 1` at the same theta and
                noise, shape `(n, *x_shape)`. The multilevel loss requires it above
                level 0, the other methods do not.
            level: Level of the simulations, 0 being the lowest fidelity. Levels are
                appended in rising order; more simulations of a level can follow.
            proposal: What theta was drawn from. Only the prior (or `None`, which means
                the prior) and its restrictions are possible: there is no correction
                for other proposals that holds on several levels.
            data_device: Where to store the data; the device of training by default.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the simulations do not fit each other or those appended
                before. Nothing is stored then.

        Warns:
            UserWarning: If simulations were appended before, with the same theta and x.
        """
        check_types(
            AppendingTrainer.append_multilevel_simulations, locals(), but=("theta",)
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
            self._check_names(parts)
        elif x is None or level is None:
            raise ValueError(incomplete(theta, x, level))
        else:
            if self._parameters is not None:
                theta = self._parameters.complete(theta, level, self._prior)
            parts = [LevelSimulations(level, theta, x, x_coarse)]
        self._check_appended(parts, data_device)
        warn_of_repeats(parts, self._entries)
        for part in parts:
            self._append_level(part, data_device)
        return self

    def append_lowfidelity_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        level: int = 0,
        data_device: str | None = None,
    ) -> Self:
        """Store unpaired simulations of a lower fidelity for later training.

        Args:
            theta: Parameters drawn from the prior, shape `(n, d_theta)`, or, where the
                trainer was given `parameters`, the columns of this level.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            level: Level of the simulations. The multilevel loss can use unpaired
                simulations of level 0 only. The highest level is above all of these.
            data_device: Where to store the data; the device of training by default.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the simulations do not fit. Nothing is stored then.
        """
        check_types(AppendingTrainer.append_lowfidelity_simulations, locals())
        if level != 0 and self._config.needs_pairs:
            raise ValueError(
                f"level={level} was passed, but unpaired simulations above level 0 "
                f"cannot enter a telescoping sum. Simulate level {level} and the level "
                "below at the same theta and noise, and use "
                "`append_multilevel_simulations`, or a transfer trainer (`MFNPE`, "
                "`MFNLE`)."
            )
        self.append_multilevel_simulations(
            theta, x, level=level, data_device=data_device
        )
        self._appended.low_fidelity.add(level)
        return self

    def append_weighted_simulations(
        self, theta: Tensor, x: Tensor, weights: Tensor
    ) -> Self:
        r"""Store weighted simulations of the highest level, with theta of any density.

        Args:
            theta: Parameters, shape `(n, d_theta)`.
            x: Outputs of the highest simulator, shape `(n, *x_shape)`.
            weights: Weight of each simulation in the loss, shape `(n,)`, e.g. the
                importance weights :math:`p(\theta) / \tilde p(\theta)`.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If the simulations do not fit, or the method needs pairs.
        """
        if self._config.needs_pairs:
            raise ValueError(
                "weights were passed, but unpaired simulations cannot enter a "
                "telescoping sum. Use a transfer trainer (`MFNPE`, `MFNLE`)."
            )
        level = self._appended.highest
        rows = LevelSimulations(level, theta, x, weights=weights)
        index = len(self._theta_roundwise)
        self.append_simulations(rows.theta, rows.x)
        device = self._x_roundwise[index].device
        self._appended.weights[index] = rows.loss_weights.to(device)
        return self

    @property
    def _entries(self) -> list[LevelSimulations]:
        """All that was appended, in that order."""
        return [self._entry(index) for index in range(len(self._theta_roundwise))]

    def _entry(self, index: int) -> LevelSimulations:
        """An entry of sbi's lists with its level, coarse side and weights."""
        appended = self._appended
        return LevelSimulations.trusted(
            appended.levels.get(index, appended.highest),
            self._theta_roundwise[index],
            self._x_roundwise[index],
            appended.x_coarse.get(index),
            appended.weights.get(index),
        )

    def _append_level(self, level: LevelSimulations, data_device: str | None) -> None:
        index = len(self._theta_roundwise)
        super().append_simulations(level.theta, level.x, data_device=data_device)  # pyright: ignore[reportAbstractUsage]
        self._appended.levels[index] = level.level
        device = self._x_roundwise[index].device
        if level.x_coarse is not None:
            self._appended.x_coarse[index] = level.x_coarse.to(device)
        if level.weights is not None:
            self._appended.weights[index] = level.weights.to(device)

    # Checks

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

    def _check_names(self, parts: list[LevelSimulations]) -> None:
        """Raise if levels of one object have columns of other names."""
        if self._parameters is None:
            return
        differing = [
            part.level for part in parts if not self._parameters.are_highest(part.level)
        ]
        if differing:
            raise ValueError(
                f"parameters names other columns of theta at level {differing[0]}, but "
                "simulations of all levels were passed as one object, which has the "
                "columns of the highest level. Pass theta, x and level of each level, "
                "or make a trainer without parameters."
            )

    def _check_appended(
        self, parts: list[LevelSimulations], data_device: str | None
    ) -> None:
        levels, needs_pairs = self._appended.levels, self._config.needs_pairs
        if needs_pairs and len(levels) != len(self._theta_roundwise):
            raise ValueError(
                "`append_simulations` was called before. Its simulations have no level "
                "and no pair below, so they cannot enter a telescoping sum: use a new "
                "trainer, and append them as pairs (or as level 0)."
            )
        known = {*levels.values(), *(part.level for part in parts)}
        check_levels_are_consecutive(sorted(known))
        first = self._entry(0) if self._theta_roundwise else parts[0]
        for part in parts:
            if needs_pairs:
                check_paired(part)
            check_same_shapes(part, first)
        if self._theta_roundwise:
            device = torch.device(data_device or self._device)
            check_same_device(
                torch.empty(0, device=device), first.theta, parts[0].level
            )

    def _check_unlabelled(self, theta: Tensor, x: Tensor, drops_invalid: bool) -> None:
        """Check simulations of `append_simulations` beside those of levels."""
        if not self._appended.levels:
            return
        level = self._appended.highest
        check_plain(theta, x, level, drops_invalid)
        simulations = LevelSimulations.trusted(level, theta, x)
        check_same_shapes(simulations, self._entry(0))
        warn_of_repeats([simulations], self._entries)

    def _check_trainable(self) -> MultilevelSimulations:
        """All simulations as the method uses them.

        Raises:
            ValueError: If they cannot be trained on.
        """
        self._check_single_round(None)
        parts, needs_pairs = self._entries, self._config.needs_pairs
        if needs_pairs and len(parts) > len(self._appended.levels):
            raise ValueError(
                "`append_simulations` was called beside multilevel simulations, or "
                "after `warm_start`. Simulations without a level cannot enter a "
                "telescoping sum: append them as pairs of the highest level with "
                "`append_multilevel_simulations`, in a new trainer, or use a transfer "
                "trainer (`MFNPE`, `MFNLE`)."
            )
        check_width(parts[0], self._prior)
        for part in parts:
            check_same_shapes(part, parts[0])
        simulations = self._config.arrange(parts)
        if needs_pairs and len(simulations) < 2:
            raise ValueError(
                f"Only level 0 was appended ({len(simulations[0])} simulations). "
                "Append pairs of level 1, or, if there is one simulator only, use "
                "`append_simulations`."
            )
        return simulations
