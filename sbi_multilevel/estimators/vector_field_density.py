r"""The density of a vector field estimator of sbi, by its probability flow.

The samples of a vector field :math:`v(\theta_t, t; x)` are solutions of an ordinary
differential equation that start at draws from a Gaussian, and the density of a sample
is that of its start times the change of volume along the solution (Chen et al. 2018,
arXiv:1806.07366). Both are those of `sbi.samplers.ode_solvers`.
"""

from __future__ import annotations

from typing import Any

import torch
from sbi.samplers.ode_solvers import build_neural_ode
from torch import Tensor

from sbi_multilevel.estimators.transformed import WrappedDensity

# Tolerances of the solver, coarser than the default for samples of a posterior.
_ABSOLUTE, _RELATIVE = 1e-4, 1e-3
_CHUNK = 20_000  # equations that are solved together


class VectorFieldDensity(WrappedDensity):
    """A vector field as a density estimator of theta given x.

    Args:
        estimator: A trained estimator of flow matching or of scores.
    """

    @torch.no_grad()
    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Log density, shapes as in `ConditionalDensityEstimator.log_prob`."""
        if input.ndim <= len(self.input_shape) + 1:
            input = input.unsqueeze(0)
        condition = condition.expand(input.shape[1], *self.condition_shape)
        parts = zip(input.split(_CHUNK, dim=1), condition.split(_CHUNK))
        values = [
            self._flow(given).log_prob(self.net.to_z(some)) for some, given in parts
        ]
        return torch.cat(values, dim=1) - self.net.log_abs_det()

    @torch.no_grad()
    def sample(
        self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any
    ) -> Tensor:
        """Samples, shapes as in `ConditionalDensityEstimator.sample`."""
        count = torch.Size(sample_shape).numel()
        parts = [
            self._flow(given).sample(torch.Size((count,)))
            for given in condition.split(max(_CHUNK // count, 1))
        ]
        samples = self.net.from_z(torch.cat(parts, dim=1))
        return samples.reshape(*sample_shape, len(condition), *self.input_shape)

    def _flow(self, condition: Tensor) -> Any:
        field = self.net
        solver = build_neural_ode(
            field.ode_fn,
            field.net,
            field.mean_base,
            field.std_base,
            field.condition_shape,
            t_min=field.t_min,
            t_max=field.t_max,
            atol=_ABSOLUTE,
            rtol=_RELATIVE,
        )
        return solver(condition)
