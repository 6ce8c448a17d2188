r"""Random losses with the same random numbers for both sides of a pair.

The loss of a ratio estimator depends on contrastive parameters, that of a vector field
on a time and a noise. Let :math:`f_l(z)` be the loss of a simulation of level l with
such random numbers z. Any coupling of them leaves the expectation of the telescoping
sum as it is, but its variance contains

.. math::

    \mathrm{Var}\left[ f_l(z) - f_{l-1}(z') \right]
    = \mathrm{Var}[f_l] + \mathrm{Var}[f_{l-1}] - 2\, \mathrm{Cov}[f_l(z), f_{l-1}(z')],

which is small if :math:`z' = z`, as theta and the noise of the simulators are the same
already. Both sides of a pair have the same theta, and therefore draw numbers of the
same shapes: from the same state of the generator they are the same numbers.

Contrastive parameters are drawn from the parameters of training simulations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_multilevel.utils.seeds import repetition

Columns = Sequence[Tensor]


def split_terms(batch: Columns) -> dict[int, list[Tensor]]:
    """The columns of a batch for each term.

    Args:
        batch: Columns of equal length, the last of which is the index of the term.
    """
    marks = batch[-1]
    places = {m: (marks == m).nonzero()[:, 0] for m in marks.unique().tolist()}
    return {m: [column[place] for column in batch] for m, place in places.items()}


def with_common_noise(
    parts: Mapping[int, Columns],
    levels: Sequence[int],
    evaluate: Callable[[Columns], Tensor],
    device: str | torch.device = "cpu",
) -> dict[int, Tensor]:
    """Evaluate each term, with the same random numbers for all terms of a level.

    Args:
        parts: Columns of the simulations of each term, by its index; those of terms of
            one level are in the same order.
        levels: Level of each term.
        evaluate: A random function, which returns a value for each simulation.
        device: The device on which it draws random numbers, beside the CPU.

    Returns:
        The values by the index of the term.
    """
    found, repeat = {}, {}
    for mark, columns in parts.items():
        level = levels[mark]
        if level in repeat:
            repeat[level]()
        else:
            repeat[level] = repetition(device)
        found[mark] = evaluate(columns)
    return found


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
