r"""Parameters of the four plasticity rules, and their prior.

A synapse from a neuron of population X to one of population Y, excitatory (E) or
inhibitory (I), has the rule XY. Each rule has six parameters, theta has 24, in the
order of `PARAMETERS`:

==================  =====  ==================================================
`tau_pre`           s      time constant of the presynaptic trace
`tau_post`          s      time constant of the postsynaptic trace
`alpha`                    change of the weight at a presynaptic spike
`beta`                     change at a postsynaptic spike
`gamma`                    change at a postsynaptic spike, by presynaptic trace
`kappa`                    change at a presynaptic spike, by postsynaptic trace
==================  =====  ==================================================

Changes are in units of the learning rate. Time constants are in [0.01, 0.1] s, other
parameters in [-2, 2]: Table 2 of Krouglova et al. (2026), arXiv:2502.08416, the box of
Confavreux et al. (2023). Names and order are those of the code of both papers. The rate
of the input, a nuisance parameter in 5 to 15 Hz in Confavreux et al., is 10 Hz here, as
in Krouglova et al.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints

RULES = ("EE", "EI", "IE", "II")
NAMES = ("tau_pre", "tau_post", "alpha", "beta", "gamma", "kappa")
PARAMETERS = tuple(f"{name}_{rule}" for rule in RULES for name in NAMES)
RANGES = ((0.01, 0.1), (0.01, 0.1), *[(-2.0, 2.0)] * 4)
LOW, HIGH = (torch.tensor([pair[i] for pair in RANGES * 4]) for i in range(2))
RATES = (1.0, 50.0)  # plausible rates, Hz

_CHUNK = 500_000  # draws from the box at a time

# values of parameters that a level does not depend on, appendix G.3 of Krouglova et al.
FIXED = (0.05, 0.05, 0.5, 0.5, -1.9, 0.5)


class _Accepted(constraints.Constraint):
    """Points of a box that a predicate accepts; sbi transforms as it does the box."""

    event_dim = 1

    def __init__(self, low: Tensor, high: Tensor, accepts: Callable[[Tensor], Tensor]):
        self.base_constraint = constraints.interval(low, high)
        self.box = constraints.independent(self.base_constraint, 1)
        self.accepts = accepts

    def check(self, value: Tensor) -> Tensor:
        flat = value.reshape(-1, value.shape[-1])
        return self.box.check(value) & self.accepts(flat).reshape(value.shape[:-1])


biject_to.register(_Accepted, lambda constraint: biject_to(constraint.box))


class RestrictedUniform(Distribution):
    """Uniform distribution on the points of a box that a predicate accepts.

    Args:
        low: Lower corner, shape `(d,)`.
        high: Upper corner, shape `(d,)`.
        accepts: Predicate of points, shape `(n, d)`, that returns booleans, `(n,)`.
        share: Share of the volume of the box that is accepted.

    Raises:
        ValueError: If the share is not in (0, 1].
    """

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        accepts: Callable[[Tensor], Tensor],
        share: float,
    ):
        if not 0 < share <= 1:
            raise ValueError(
                f"share={share} must be in (0, 1]. Pass the accepted share of uniform "
                "draws from the box."
            )
        super().__init__(event_shape=low.shape, validate_args=False)
        self.low, self.high, self.share = low, high, share
        self._accepted = _Accepted(low, high, accepts)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: the arguments are checked when it is made."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """The accepted points."""
        return self._accepted

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw by rejection.

        Args:
            sample_shape: Shape of the sample.
        """
        missing = math.prod(sample_shape)
        parts = [self.low.new_empty(0, len(self.low))]
        while missing > 0:
            size = min(int(1.2 * missing / self.share) + 10, _CHUNK)
            uniforms = torch.rand(size, len(self.low), dtype=self.low.dtype)
            drawn = self.low + (self.high - self.low) * uniforms
            parts.append(drawn[self._accepted.accepts(drawn)][:missing])
            missing -= len(parts[-1])
        return torch.cat(parts).reshape(*sample_shape, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, minus infinity at points that are not accepted.

        Args:
            value: Points, shape `(*batch, d)`.
        """
        log_volume = (self.high - self.low).log().sum() + math.log(self.share)
        values = -log_volume.expand(value.shape[:-1])
        return values.masked_fill(~self._accepted.check(value), -torch.inf)
