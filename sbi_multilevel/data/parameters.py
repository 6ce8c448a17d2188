r"""Parameters that only some levels have.

The network is a density over the parameters :math:`\theta` of the highest level. A
parameter that a lower level does not have does not act on its outputs, so any value is
right: it is a *dummy*, drawn from the prior. With

.. math:: \theta_\mathrm{fill} \sim p(\theta_\mathrm{fill}), \qquad
    x = G_0(\theta_\mathrm{have}),

pre-training learns :math:`p(\theta_\mathrm{have} \mid x)\, p(\theta_\mathrm{fill})`,
which is exact where the prior makes the two independent.

A parameter that only a lower level has is dropped. The paper (Appendix D.4) keeps it as
a dimension of the network, fills it from its prior in fine-tuning, and ignores it at
the end; dropping it marginalizes it already in training,

.. math:: p(\theta \mid x) = \int p(\theta, \psi \mid x) \, d\psi,

so that the posterior has exactly the parameters of the highest level, with a density.

Reference: Krouglova et al. (2026), Section 3.1.1, see
`sbi_multilevel.methods.transfer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sbi_multilevel.utils.argument_types import check_field_types


@dataclass(frozen=True)
class LevelParameters:
    """Names of the columns of theta of each level.

    Args:
        parameters: Names by level, the highest included. Levels left out have the
            parameters of the highest one.

    Raises:
        ValueError: If a level names a parameter twice, or shares none with the highest.

    Example:
    --------

    ::

        >>> import torch
        >>> columns = LevelParameters({0: ("mu", "psi"), 1: ("mu", "gamma")})
        >>> theta = torch.tensor([[1.0, 9.0]])
        >>> prior = torch.distributions.Uniform(torch.zeros(2), torch.zeros(2) + 1e-9)
        >>> columns.complete(theta, level=0, prior=prior).round(decimals=3)
        tensor([[1., 0.]])
    """

    parameters: Mapping[int, Sequence[str]]

    def __post_init__(self) -> None:
        check_field_types(self)
        if not self.parameters:
            raise ValueError(
                "parameters is empty. Name the columns of theta of the levels, e.g. "
                "{0: ('mu',), 1: ('mu', 'sigma')}, or leave it out."
            )
        for level, names in self.parameters.items():
            if len(set(names)) < len(names) or isinstance(names, str):
                raise ValueError(
                    f"parameters of level {level} must be different names, one a "
                    f"column of theta, but are {names!r}."
                )
            if not set(names) & set(self.highest):
                raise ValueError(
                    f"parameters of level {level} are {tuple(names)}, those of the "
                    f"highest level {tuple(self.highest)}: none in common, so nothing "
                    f"can be learned from level {level}. Use the same names for the "
                    "same parameters."
                )

    @property
    def highest(self) -> Sequence[str]:
        """Names of the columns of the highest level."""
        return self.parameters[max(self.parameters)]

    def are_highest(self, level: int) -> bool:
        """Whether the columns of a level are those of the highest one, in order."""
        return list(self.parameters.get(level, self.highest)) == list(self.highest)

    def complete(self, theta: Tensor, level: int, prior: Any) -> Tensor:
        """Bring theta of a level to the columns of the highest one.

        Args:
            theta: Parameters of the simulations, shape `(n, d_level)`.
            level: Their level.
            prior: Prior of the highest level; missing columns are drawn from it.

        Returns:
            Parameters, shape `(n, d_theta)`.

        Raises:
            ValueError: If theta has another number of columns than the level has names,
                or if there is no prior to fill columns from.
        """
        want = list(self.highest)
        have = list(self.parameters.get(level, want))
        if theta.ndim != 2 or theta.shape[1] != len(have):
            raise ValueError(
                f"theta of level {level} has shape {tuple(theta.shape)}, but its "
                f"parameters are {tuple(have)}: pass {len(have)} columns in this "
                "order, or name others in `parameters`."
            )
        if self.are_highest(level):
            return theta
        common = [name for name in want if name in have]
        columns = theta[:, [have.index(name) for name in common]]
        if common == want:
            return columns
        if prior is None:
            missing = tuple(name for name in want if name not in have)
            raise ValueError(
                f"prior is None, but the parameters {missing} that level {level} lacks "
                "are drawn from it. Pass the prior to the trainer."
            )
        full = prior.sample((len(theta),)).to(theta).clone()
        full[:, [want.index(name) for name in common]] = columns
        return full
