"""Contrastive parameters, drawn from the parameters of training simulations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Distinct parameters, draws from the prior.

    Args:
        theta: The parameters, shape `(m, d_theta)`.
    """

    theta: Tensor

    @classmethod
    def of(cls, theta: Tensor) -> Contrasts:
        """The distinct ones of parameters, shape `(n, d_theta)`.

        Raises:
            ValueError: If all are the same.
        """
        distinct = theta.unique(dim=0)
        if len(distinct) < 2:
            raise ValueError(
                f"theta is {distinct[0].tolist()} in all {len(theta)} training "
                "simulations, but ratio estimation compares at least two parameters. "
                "Draw theta from the prior."
            )
        return cls(distinct)

    def __len__(self) -> int:
        """Number of parameters that can be drawn for each simulation."""
        return len(self.theta) - 1

    def draw(self, theta: Tensor, count: int) -> Tensor:
        """Draw contrastive parameters for simulations, none of them their own.

        Args:
            theta: Parameters of the simulations, shape `(n, d_theta)`.
            count: Number for each.

        Returns:
            Parameters, shape `(n, count, d_theta)`.
        """
        index = torch.randint(len(self.theta), (len(theta), count))
        index = index.to(self.theta.device)
        is_own = (self.theta[index] == theta.to(self.theta.device)[:, None]).all(dim=2)
        return self.theta[(index + is_own.long()) % len(self.theta)]
