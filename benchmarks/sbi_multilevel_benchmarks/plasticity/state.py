"""State of the spiking network: neurons, synapses, rules; and how it begins.

Constants are explained in `network`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sbi_multilevel_benchmarks.plasticity.config import NetworkConfig
from sbi_multilevel_benchmarks.plasticity.parameters import RULES

STEP = 1e-4  # s
V_REST = -0.070  # V
NUM_INPUTS, INPUT_PROBABILITY = 5_000, 0.05
MAX_WEIGHT = 20.0


class Synapses(NamedTuple):
    """Recurrent synapses by presynaptic neuron, and an index by postsynaptic neuron."""

    start: np.ndarray  # of each presynaptic neuron in `target` and `weight`
    target: np.ndarray
    weight: np.ndarray
    in_start: np.ndarray  # of each postsynaptic neuron in `in_source` and `in_index`
    in_source: np.ndarray
    in_index: np.ndarray


class Plasticity(NamedTuple):
    """Rules by population of the two neurons, and traces by the other population."""

    alpha: np.ndarray  # `[pre, post]`, times the learning rate, as those below
    beta: np.ndarray
    gamma: np.ndarray
    kappa: np.ndarray
    pre_trace: np.ndarray  # `[population of targets, neuron]`
    post_trace: np.ndarray  # `[population of sources, neuron]`
    pre_decay: np.ndarray
    post_decay: np.ndarray
    max_weight: float


class Neurons(NamedTuple):
    """State of each neuron."""

    voltage: np.ndarray
    threshold: np.ndarray  # above the resting threshold
    ampa: np.ndarray
    nmda: np.ndarray
    gaba: np.ndarray


class Inputs(NamedTuple):
    """Targets of the Poisson neurons."""

    start: np.ndarray
    target: np.ndarray


def connect(config: NetworkConfig, rng: np.random.Generator) -> Synapses:
    """Random synapses of all types, none from a neuron to itself.

    Args:
        config: Size, and initial weights.
        rng: Source of randomness.
    """
    n, num_excitatory = config.num_neurons, config.num_excitatory
    connected = rng.random((n, n), dtype=np.float32) < config.probability
    np.fill_diagonal(connected, False)
    source, target = np.nonzero(connected)
    types = 2 * (source >= num_excitatory) + (target >= num_excitatory)
    weight = np.asarray(config.initial_weights)[types]
    order = np.argsort(target, kind="stable")
    return Synapses(
        _starts(source, n),
        target,
        weight,
        _starts(target, n),
        source[order],
        order,
    )


def connect_inputs(config: NetworkConfig, rng: np.random.Generator) -> Inputs:
    """Random targets of the Poisson neurons."""
    shape = (NUM_INPUTS, config.num_neurons)
    source, target = np.nonzero(rng.random(shape, np.float32) < INPUT_PROBABILITY)
    return Inputs(_starts(source, NUM_INPUTS), target)


def _starts(index: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(np.bincount(index, minlength=n))))


def plasticity_of(theta: np.ndarray, config: NetworkConfig) -> Plasticity:
    """The four rules of a theta, with traces of 0.

    Args:
        theta: Parameters, shape `(24,)`.
        config: Size, and learning rate.
    """
    rules = np.asarray(theta, dtype=np.float64).reshape(len(RULES), 6)
    table = rules.T.reshape(6, 2, 2)  # parameter, presynaptic, postsynaptic
    tau_pre, tau_post, alpha, beta, gamma, kappa = table
    rate = config.learning_rate
    counts = (config.num_excitatory, config.num_neurons - config.num_excitatory)
    decay_pre = np.exp(-STEP / np.repeat(tau_pre.T, counts, axis=1))
    decay_post = np.exp(-STEP / np.repeat(tau_post, counts, axis=1))
    return Plasticity(
        rate * alpha,
        rate * beta,
        rate * gamma,
        rate * kappa,
        np.zeros_like(decay_pre),
        np.zeros_like(decay_post),
        decay_pre,
        decay_post,
        MAX_WEIGHT,
    )


def resting(n: int) -> Neurons:
    """Neurons at rest."""
    return Neurons(np.full(n, V_REST), *(np.zeros(n) for _ in range(4)))
