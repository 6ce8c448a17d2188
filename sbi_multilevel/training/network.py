"""The network: started from trained weights, and partly frozen."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.estimators.base import ConditionalEstimator
from torch import Tensor, nn

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.preparation import for_scaling
from sbi_multilevel.data.simulations import Target
from sbi_multilevel.estimators.reading import with_x_map, without_x_map, x_reader
from sbi_multilevel.estimators.transformed import Builder, MappedEstimator
from sbi_multilevel.utils.files import check_state_dict, read_state, understood

WarmStart = ConditionalEstimator | str | os.PathLike | Mapping[str, Tensor]


def read_weights(path: str | os.PathLike) -> Mapping[str, Tensor]:
    """Weights of an estimator from a file, which is read without unpickling.

    Raises:
        ValueError: If the file holds something else.
        OSError: If it cannot be read.
    """
    remedy = "Pass a file written by `torch.save(estimator.state_dict(), path)`."
    with understood("source", path, "weights of an estimator", remedy):
        weights = read_state(path)
        check_state_dict(weights)
        return weights


def moments_of(network: Any, x: Tensor) -> Moments | None:
    """Moments of the x that an estimator was built on, if it keeps them.

    Args:
        network: An estimator, or weights of one.
        x: Outputs to be trained on, shape `(n, *x_shape)`.

    Raises:
        ValueError: If they are those of other features.
    """
    reader = x_reader(network)
    if reader is not None:
        mean, std = reader.moments.mean, reader.moments.std
    elif isinstance(network, Mapping) and (key := _key_of_mean(network)):
        mean, std = network[key], network.get(f"{key.removesuffix('mean')}std")
    else:
        return None
    found = [None if values is None else tuple(values.shape) for values in (mean, std)]
    wanted = tuple(x.shape[1:]) if x.ndim == 2 else ()  # see `Moments`
    if found != [wanted, wanted]:
        raise ValueError(
            "The weights of `warm_start` are not those of this network (its x_mean and "
            f"x_std have the shapes {found[0]} and {found[1]}, but a simulation has "
            f"the shape {tuple(x.shape[1:])}). Pre-train on simulations of this shape, "
            "or train from scratch."
        )
    return Moments(mean, std)


def with_spread(x: Tensor, indices: Tensor) -> Tensor:
    """x whose chosen entries vary in each feature, so that it can be z-scored.

    Args:
        x: Outputs, shape `(n, *x_shape)`.
        indices: The outputs that a network is built on.
    """
    chosen = x[indices]
    scaled = for_scaling(chosen)
    if scaled is chosen:
        return x
    return x.index_copy(0, torch.as_tensor(indices, device=x.device), scaled)


def start_from(
    source: ConditionalEstimator | Mapping[str, Tensor],
    build: Builder,
    target: Target,
    theta: Tensor,
    x: Tensor,
) -> Any:
    """An estimator that starts from the weights of another.

    Args:
        source: A trained estimator, which is copied, or its `state_dict()`.
        build: Builder of the network that the `state_dict()` is of.
        target: `"theta"` (NPE) or `"x"` (NLE).
        theta: Training simulations, shape `(n, d_theta)`.
        x: Training simulations, shape `(n, *x_shape)`.

    Raises:
        ValueError: If the weights or the estimator do not fit the simulations.
    """
    if isinstance(source, ConditionalEstimator):
        estimator = deepcopy(source)
    else:
        estimator = build(theta, x)
        if x_reader(estimator) is not None and _key_of_mean(source) is None:
            estimator = without_x_map(estimator)  # weights of an estimator of sbi
        try:
            estimator.load_state_dict(source)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                "The weights of `warm_start` are not those of this network "
                f"({str(error)[:200]}...). Pass what "
                "`torch.save(estimator.state_dict(), path)` wrote, and the same prior, "
                "density_estimator and config as then."
            ) from error
    shapes = (estimator.input_shape, estimator.condition_shape)
    of_theta, of_x = shapes if target == "theta" else shapes[::-1]
    for name, found, column in (("theta", of_theta, theta), ("x", of_x, x)):
        wanted = column.shape[1:]
        if found != wanted:
            raise ValueError(
                f"The estimator of `warm_start` takes {name} of shape {tuple(found)}, "
                f"but that of the simulations has {tuple(wanted)}. Pre-train on "
                "simulations of this shape, or train from scratch."
            )
    if x_reader(estimator) is not None:
        return estimator
    if isinstance(estimator, ConditionalDensityEstimator):
        return MappedEstimator(estimator, target, None, Moments.of(x))
    return with_x_map(estimator, Moments.of(x))


def _key_of_mean(weights: Mapping[str, Tensor]) -> str | None:
    """The key of the mean of x among the weights of a network."""
    prefixes = ("", "embedding_net_x.0.", "_embedding_net.0.")
    return next((key for p in prefixes if (key := f"{p}x_mean") in weights), None)


@contextlib.contextmanager
def frozen(network: nn.Module, patterns: Sequence[str]) -> Iterator[None]:
    """Keep the parameters whose names match out of training inside the block.

    Raises:
        ValueError: If a pattern matches no parameter, or all are matched.
    """
    names = {name: p for name, p in network.named_parameters() if p.requires_grad}
    chosen = set()
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name, pattern)}
        if not matching:
            raise ValueError(
                f"freeze has the pattern {pattern!r}, which matches no parameter of "
                f"the network. Its names are {list(names)[:10]}..."
            )
        chosen |= matching
    if chosen and len(chosen) == len(names):
        raise ValueError(
            f"freeze={tuple(patterns)} matches all parameters of the network, which "
            "leaves nothing to fine-tune."
        )
    for name in chosen:
        names[name].requires_grad_(False)
        names[name].grad = None
    try:
        yield
    finally:
        for name in chosen:
            names[name].requires_grad_(True)
