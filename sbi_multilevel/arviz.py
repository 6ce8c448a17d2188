"""Posterior samples for ArviZ: an `xarray.DataTree` of an inference with sbi.

The groups are those of ArviZ's schema: `posterior`, `observed_data`, `prior` and
`prior_predictive`. ArviZ takes the tree from version 1.0 on; for earlier versions
`arviz.from_datatree(tree)` converts it to an `InferenceData`. The tree needs only
xarray, so ArviZ does not have to be installed.

Samples of sbi's direct posteriors are independent and form one chain, for which
convergence diagnostics are not informative. Samples of an `MCMCPosterior` are grouped
by its chains (see also sbi's guide to MCMC diagnostics with ArviZ).

Reference: ArviZ developers, *InferenceData schema specification*.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from sbi.inference import ImportanceSamplingPosterior, MCMCPosterior
from sbi.utils.sbiutils import ImproperEmpirical
from sbi.utils.user_input_checks import process_x
from torch import Tensor

from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.utils.argument_types import check_types

if TYPE_CHECKING:
    from xarray import DataTree


def to_datatree(
    posterior: Any,
    x_o: Tensor | None = None,
    *,
    inference: Any = None,
    simulations: MultilevelSimulations | None = None,
    num_samples: int = 1_000,
    labels: Sequence[str] | None = None,
) -> DataTree:
    r"""Samples, observation and prior as an `xarray.DataTree` for ArviZ.

    Args:
        posterior: A posterior of sbi.
        x_o: The observation, shape `(1, *x_shape)`, or `(n, *x_shape)` for n
            independent observations of one theta, if the posterior supports this; one
            observation if it has one dimension, as in sbi; by default the default x of
            the posterior.
        inference: The trainer, whose prior is used if the posterior has none.
        simulations: Simulations at theta from the prior. Those of the highest level
            become the groups `prior` and `prior_predictive`; without them, `prior`
            holds `num_samples` new samples, if the prior is known.
        num_samples: Number of posterior samples; with MCMC rounded up to a multiple of
            the number of chains.
        labels: Names of the parameters, which then become separate variables. Without
            them there is one variable, `theta`, of shape `(chain, draw, d_theta)`.

    Returns:
        The tree. `observed_data` and `prior_predictive` have the variable `x`.

    Raises:
        ImportError: If xarray is missing, or older than 2024.10.
        ValueError: If there is no observation, the labels are not one name for each
            parameter or are names of dimensions, the simulations have weights, so that
            they do not follow the prior, or the posterior returns weighted samples.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNPE
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> theta = prior.sample((200,))
        >>> inference = MFNPE(prior, density_estimator="mdn", show_progress_bars=False)
        >>> inference = inference.append_simulations(theta, theta)
        >>> _ = inference.train(max_num_epochs=2)
        >>> tree = to_datatree(
        ...     inference.build_posterior(), torch.zeros(1, 2), labels=["mu", "sigma"]
        ... )
        >>> sorted(tree.children)
        ['observed_data', 'posterior', 'prior']
        >>> tree["posterior/mu"].shape
        (1, 1000)
    """
    check_types(to_datatree, locals())
    if not hasattr(posterior, "sample") or not hasattr(posterior, "default_x"):
        raise TypeError(
            f"posterior is a {type(posterior).__name__}, but must be a posterior of "
            "sbi, as `build_posterior` returns it."
        )
    if num_samples < 1:
        raise ValueError(f"num_samples must be >= 1, but is {num_samples}.")
    if (
        isinstance(posterior, ImportanceSamplingPosterior)
        and posterior.method == "importance"
    ):
        raise ValueError(
            "posterior is an ImportanceSamplingPosterior with method='importance', "
            "whose samples have weights, which ArviZ does not take. Build it with "
            "`ImportanceSamplingPosteriorParameters(method=\"sir\")`, which resamples."
        )
    xarray = _import_xarray()
    if x_o is None and posterior.default_x is None:
        raise ValueError(
            "x_o is None, and the posterior has no default x. Pass the observation, or "
            "call `posterior.set_default_x(x_o)` first."
        )
    samples = _sample_chains(posterior, x_o, num_samples)
    # of the shape in which the posterior takes it
    observed = process_x(posterior.default_x if x_o is None else x_o)
    prior = _prior_of(posterior, inference)
    groups = {
        "posterior": _parameters(samples, labels),
        "observed_data": _outputs(("observation",), observed),
    }
    if simulations is not None:
        highest = simulations[-1]
        if highest.weights is not None:
            raise ValueError(
                "simulations have weights, so they do not follow the prior. Leave them "
                "out, or pass simulations without weights."
            )
        groups["prior"] = _parameters(highest.theta[None], labels)
        groups["prior_predictive"] = _outputs(("chain", "draw"), highest.x[None])
    elif prior is not None:
        groups["prior"] = _parameters(prior.sample((num_samples,))[None], labels)
    attributes = {
        "inference_library": "sbi",
        "inference_library_version": version("sbi"),
        "posterior": type(posterior).__name__,
    }
    datasets = {}
    for name, variables in groups.items():
        dataset = xarray.Dataset(variables, attrs=attributes)
        counted = dataset.sizes.keys() & {"chain", "draw", "observation"}
        datasets[name] = dataset.assign_coords({
            dim: np.arange(dataset.sizes[dim]) for dim in sorted(counted)
        })
    return xarray.DataTree.from_dict(datasets)


def _import_xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise ImportError(
            "to_datatree needs xarray. Install it, with ArviZ, by "
            "`pip install 'sbi_multilevel[arviz]'`."
        ) from error
    if not hasattr(xarray, "DataTree"):
        raise ImportError(
            f"to_datatree needs xarray 2024.10 or later, but {xarray.__version__} is "
            "installed. Run `pip install --upgrade xarray`."
        )
    return xarray


def _sample_chains(posterior: Any, x_o: Tensor | None, num_samples: int) -> Tensor:
    """Samples, shape `(chains, draws, d_theta)`."""
    chains = 1
    if isinstance(posterior, MCMCPosterior):
        chains = posterior.num_chains or 1
    count = -(-num_samples // chains) * chains
    # sbi concatenates the samples of the chains
    samples = posterior.sample((count,), x=x_o, show_progress_bars=False)
    return samples.reshape(chains, count // chains, -1)


def _prior_of(posterior: Any, inference: Any) -> Any | None:
    """The prior of the posterior, its potential, or the trainer; `None` if unknown."""
    potential = getattr(posterior, "potential_fn", None)
    candidates = (
        getattr(posterior, "prior", None),
        getattr(potential, "prior", None),
        getattr(inference, "_prior", None),
    )
    for prior in candidates:
        if prior is not None and not isinstance(prior, ImproperEmpirical):
            return prior
    return None


def _parameters(theta: Tensor, labels: Sequence[str] | None) -> dict[str, Any]:
    """Variables of parameters, from shape `(chains, draws, d_theta)`."""
    values, dims = theta.detach().cpu().numpy(), ("chain", "draw")
    if labels is None:
        return {"theta": ((*dims, "theta_dim"), values)}
    if len(labels) != values.shape[-1]:
        raise ValueError(
            f"labels has {len(labels)} names {list(labels)}, but there are "
            f"{values.shape[-1]} parameters. Pass one name for each."
        )
    taken = set(labels) & set(dims)
    if taken or len(set(labels)) < len(labels):
        raise ValueError(
            f"labels={list(labels)} must be different names, and none of {list(dims)}, "
            "which ArviZ uses for dimensions. Choose others."
        )
    return {name: (dims, values[..., i]) for i, name in enumerate(labels)}


def _outputs(dims: tuple[str, ...], x: Tensor) -> dict[str, Any]:
    """Outputs of simulators, of shape `x_shape` after the named dimensions."""
    values = x.detach().cpu().numpy()
    inner = (f"x_dim_{i}" for i in range(values.ndim - len(dims)))
    return {"x": ((*dims, *inner), values)}
