r"""The high level: a network of spiking neurons with four plastic synapse types.

*Neurons.* Excitatory (E) and inhibitory (I) leaky integrate-and-fire neurons,

.. math::

    \tau_m \dot V = -(V - V_\mathrm{rest}) - g^E (V - E_E) - g^I (V - E_I), \qquad
    g^E = a\, g^\mathrm{AMPA} + (1 - a)\, g^\mathrm{NMDA},

fire where :math:`V` exceeds the threshold, which then rises by 100 mV and decays with
5 ms. A spike of an E neuron adds its weight to :math:`g^\mathrm{AMPA}`, which decays
and drives :math:`\tau_\mathrm{NMDA}\, \dot g^\mathrm{NMDA} = g^\mathrm{AMPA} -
g^\mathrm{NMDA}`; one of an I neuron adds it to :math:`g^I`. The weights have no unit.

*Plasticity.* Of a synapse of type XY, from a neuron of X to one of Y,

.. math::

    \dot w = \eta \left[\delta_\mathrm{pre} (\alpha + \kappa\, x_\mathrm{post})
    + \delta_\mathrm{post} (\beta + \gamma\, x_\mathrm{pre})\right], \qquad
    \dot x = -x / \tau + \delta ,

within :math:`[0, w_\mathrm{max}]`. Spikes arrive after a delay, and the presynaptic
trace is one of arrived spikes.

*Input.* 5 000 Poisson neurons of 10 Hz, each connected to 5 % of the neurons.

Constants and their sources: membrane and threshold (20 ms, -70, -50, 0 and -80 mV;
100 mV, 5 ms), time step (0.1 ms) and delay (0.8 ms) are the defaults of the simulator
Auryn (Zenke and Gerstner, 2014), by which both papers simulate. Time constants of
synapses (5, 100 and 10 ms), the ratio 0.3 of AMPA to NMDA, so :math:`a = 0.3 / 1.3`,
connection probabilities (10 %), input (weight 0.075), initial weights (0.1 of E and 1
of I synapses), :math:`w_\mathrm{max} = 20`, :math:`\eta = 0.01` and the end of
simulations in which E neurons exceed 100 Hz (a running mean over 1 s, which begins at
50 Hz) are those of the published configuration of Confavreux et al. (2023), and of the
code of Krouglova et al. (2026), arXiv:2502.08416. The latter writes that a spike adds
to the threshold; in Auryn the threshold is set to 100 mV above that at rest.

*Size.* The papers have 4 096 and 1 024 neurons. With fewer, connection probabilities
are multiplied by the ratio of the numbers of neurons, so that each neuron has as many
synapses as in the full network, of the same weights. Neurons share more inputs, and
their correlations are larger. This choice is not from the papers. At 34 theta whose
full networks are published with the code of Krouglova et al., logs of the rates of E
and I neurons with 512 + 128 neurons have correlations of 0.91 and 0.97 with those
published, and rates are lower by 14 and 12 % (medians; 45 s, in place of 120 s).

Synapses are updated by events, neurons by steps. Without numba this module can be
imported, but functions are a hundred times slower: the task needs numba.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from sbi_multilevel_benchmarks.plasticity.config import NetworkConfig
from sbi_multilevel_benchmarks.plasticity.state import (
    NUM_INPUTS,
    STEP,
    V_REST,
    Synapses,
    connect,
    connect_inputs,
    plasticity_of,
    resting,
)


def _as_it_is(function: Callable) -> Callable:
    return function


_HAS_NUMBA = importlib.util.find_spec("numba") is not None
njit = importlib.import_module("numba").njit if _HAS_NUMBA else _as_it_is

DELAY = 8  # steps
E_EXC, E_INH, THRESHOLD = 0.0, -0.080, -0.050  # V
THRESHOLD_RISE = 0.1  # V
TAU_MEMBRANE, TAU_THRESHOLD = 0.020, 0.005  # s
TAU_AMPA, TAU_NMDA, TAU_GABA = 0.005, 0.1, 0.010  # s
AMPA_SHARE = 0.3 / 1.3
INPUT_RATE, INPUT_WEIGHT = 10.0, 0.075  # Hz
STOP_RATE, STOP_TAU = 100.0, 1.0  # Hz; s


# ------------------------------------------------------------- one step


@njit
def _evolve(neurons: Any, fired: np.ndarray) -> int:
    """A step of all neurons; writes the neurons that fire, and returns their number."""
    voltage, threshold, ampa, nmda, gaba = neurons
    leak, to_nmda = STEP / TAU_MEMBRANE, 1 - np.exp(-STEP / TAU_NMDA)
    keep_ampa, keep_gaba = np.exp(-STEP / TAU_AMPA), np.exp(-STEP / TAU_GABA)
    keep_threshold = np.exp(-STEP / TAU_THRESHOLD)
    for i in range(len(voltage)):
        v = voltage[i]
        excitation = AMPA_SHARE * ampa[i] + (1 - AMPA_SHARE) * nmda[i]
        current = V_REST - v + excitation * (E_EXC - v) + gaba[i] * (E_INH - v)
        nmda[i] += to_nmda * (ampa[i] - nmda[i])
        ampa[i] *= keep_ampa
        gaba[i] *= keep_gaba
        threshold[i] *= keep_threshold
        voltage[i] = min(max(v + leak * current, E_INH), E_EXC)
    count = 0
    for i in range(len(voltage)):
        if voltage[i] > THRESHOLD + threshold[i]:
            voltage[i], threshold[i] = V_REST, THRESHOLD_RISE
            fired[count] = i
            count += 1
    return count


@njit
def _receive_inputs(neurons: Any, inputs: Any, rng: np.random.Generator) -> None:
    for _ in range(rng.poisson(NUM_INPUTS * INPUT_RATE * STEP)):
        source = int(rng.random() * NUM_INPUTS)
        for k in range(inputs.start[source], inputs.start[source + 1]):
            neurons.ampa[inputs.target[k]] += INPUT_WEIGHT


@njit
def _transmit(neurons: Any, synapses: Any, arrived: Any, num_excitatory: int) -> None:
    for source in arrived:
        conductance = neurons.ampa if source < num_excitatory else neurons.gaba
        for k in range(synapses.start[source], synapses.start[source + 1]):
            conductance[synapses.target[k]] += synapses.weight[k]


@njit
def _learn(
    synapses: Any, rules: Any, arrived: Any, fired: Any, num_excitatory: int
) -> None:
    """The changes of weights of a step, then those of traces.

    Args:
        synapses: The synapses.
        rules: The rules, and their traces.
        arrived: Neurons whose spikes arrive at their targets in this step.
        fired: Neurons that fire in this step.
        num_excitatory: Number of E neurons.
    """
    weight, top = synapses.weight, rules.max_weight
    rules.pre_trace[:] *= rules.pre_decay
    rules.post_trace[:] *= rules.post_decay
    for source in arrived:
        pre = int(source >= num_excitatory)
        for k in range(synapses.start[source], synapses.start[source + 1]):
            target = synapses.target[k]
            post = int(target >= num_excitatory)
            change = rules.alpha[pre, post]
            change += rules.kappa[pre, post] * rules.post_trace[pre, target]
            weight[k] = min(max(weight[k] + change, 0.0), top)
    for target in fired:
        post = int(target >= num_excitatory)
        for k in range(synapses.in_start[target], synapses.in_start[target + 1]):
            source, index = synapses.in_source[k], synapses.in_index[k]
            pre = int(source >= num_excitatory)
            change = rules.beta[pre, post]
            change += rules.gamma[pre, post] * rules.pre_trace[post, source]
            weight[index] = min(max(weight[index] + change, 0.0), top)
    for source in arrived:
        rules.pre_trace[:, source] += 1.0
    for target in fired:
        rules.post_trace[:, target] += 1.0


# ------------------------------------------------------------- simulation


@njit
def _run(
    num_settle: int,
    num_record: int,
    num_excitatory: int,
    neurons: Any,
    synapses: Any,
    inputs: Any,
    rules: Any,
    is_plastic: bool,
    rng: np.random.Generator,
) -> tuple[int, int, bool]:
    """Spikes of E and I neurons while recording, and whether the run ended early."""
    n = len(neurons.voltage)
    spikes = np.empty((DELAY + 1, n), np.int64)
    counts = np.zeros(DELAY + 1, np.int64)
    running, keep = STOP_RATE / 2, np.exp(-STEP / STOP_TAU)
    totals = np.zeros(2, np.int64)
    for step in range(num_settle + num_record):
        now, past = step % (DELAY + 1), (step + 1) % (DELAY + 1)
        counts[now] = _evolve(neurons, spikes[now])
        fired, arrived = spikes[now, : counts[now]], spikes[past, : counts[past]]
        _receive_inputs(neurons, inputs, rng)
        _transmit(neurons, synapses, arrived, num_excitatory)
        if is_plastic:
            _learn(synapses, rules, arrived, fired, num_excitatory)
        num_e = np.searchsorted(fired, num_excitatory)
        running = keep * running + num_e / (num_excitatory * STOP_TAU)
        if running >= STOP_RATE:
            return 0, 0, True
        if step >= num_settle:
            totals[0] += num_e
            totals[1] += len(fired) - num_e
    return totals[0], totals[1], False


def network_rates(
    theta: np.ndarray, seed: int, config: NetworkConfig = NetworkConfig()
) -> np.ndarray:
    """Mean rates of E and I neurons after the weights have settled, in Hz.

    Args:
        theta: Parameters of the four rules, shape `(24,)`.
        seed: Seed of the connections and of the input.
        config: Size and duration.

    Returns:
        Rates, shape `(2,)`; NaN if E neurons exceed 100 Hz, where the run ends.
    """
    rng = np.random.default_rng(seed)
    synapses, inputs = connect(config, rng), connect_inputs(config, rng)
    *totals, has_stopped = _run(
        round(config.settle_seconds / STEP),
        round(config.record_seconds / STEP),
        config.num_excitatory,
        resting(config.num_neurons),
        synapses,
        inputs,
        plasticity_of(theta, config),
        config.learning_rate != 0,
        rng,
    )
    if has_stopped:
        return np.full(2, np.nan)
    counts = (config.num_excitatory, config.num_neurons - config.num_excitatory)
    return np.asarray(totals) / np.asarray(counts) / config.record_seconds


@njit
def _learn_from(spikes: Any, synapses: Any, rules: Any, num_excitatory: int) -> None:
    for step in range(len(spikes)):
        fired = np.nonzero(spikes[step])[0]
        _learn(synapses, rules, fired, fired, num_excitatory)


def weights_after(
    theta: np.ndarray, spikes: np.ndarray, synapses: Synapses, config: NetworkConfig
) -> np.ndarray:
    """Weights after given spike trains, which reach all synapses without delay.

    Args:
        theta: Parameters of the four rules, shape `(24,)`.
        spikes: Whether each neuron fires in each step, shape `(steps, neurons)`.
        synapses: The synapses, which are not changed.
        config: Size, and learning rate.
    """
    learned = synapses._replace(weight=synapses.weight.copy())
    rules = plasticity_of(theta, config)
    _learn_from(spikes, learned, rules, config.num_excitatory)
    return learned.weight
