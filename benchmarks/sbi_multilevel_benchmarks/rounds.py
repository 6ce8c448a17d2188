r"""Rounds near one observation: distance from the exact posterior, on the drug task.

The simulators, the prior and the sharp observation (number 0) are those of
`tutorials/one_observation.ipynb`. Further observations have theta near it,
:math:`\theta = \theta_0 + 0.3\, z` with :math:`z \sim N(0, I)`. The distance is the
divergence :math:`\mathrm{KL}(p \| q)` of the posterior q from the exact one, over 2 000
samples of a grid. Run it with a name of a method, numbers of observations and a file:

.. code-block:: bash

    python -m sbi_multilevel_benchmarks.rounds --methods hybrid-tsnpe-3 hybrid-npe \
        --observations 0 1 2 --output benchmarks/results/rounds/drug.jsonl

Records that are in the file are not made again. Training that observations share is
counted in the first record that needs it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel import (
    MFTSNPE,
    MLTSNPE,
    Acquisition,
    HybridNPE,
    HybridTSNPE,
    MultilevelSimulations,
    Truncation,
    simulate_multilevel,
)
from sbi_multilevel.methods.sequential.truncated_prior import TruncatedPrior
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.methods.rounds import SHORT

HOURS = torch.tensor([0.5, 1, 2, 4, 6, 9, 13, 24])
STEPS, SATURATION, DOSE, ERROR = 480, 1.0, 100.0, 0.2  # a step every three minutes
PRIOR = BoxUniform(torch.tensor([-2.0, 0.5, 2.5]), torch.tensor([1.5, 4.0, 5.0]))
SHARP = torch.tensor([0.5, 2.9, 3.0])
NUM_LOW, NUM_HIGH = 5_000, 50
_GRID, _SAMPLES = 30, 2_000
QUIET = {"show_progress_bars": False}


def low_fidelity(theta: Tensor, noise: Tensor) -> Tensor:
    """Removal at a constant rate, in closed form; shape `(n, 8)`."""
    k_a, v_m, volume = (column[:, None] for column in theta.exp().T)
    k_e = v_m / volume * 1.0001  # equal rates would be 0 / 0
    decays = (-k_e * HOURS).exp() - (-k_a * HOURS).exp()
    return _measured(DOSE / volume * k_a / (k_a - k_e) * decays, noise)


def high_fidelity(theta: Tensor, noise: Tensor) -> Tensor:
    """Removal that saturates, in time steps; shape `(n, 8)`."""
    k_a, v_m, volume = theta.exp().T
    dt, level, seen = 24 / STEPS, torch.zeros(len(theta)), []
    for t in range(STEPS):
        dose = DOSE * ((-k_a * t * dt).exp() - (-k_a * (t + 1) * dt).exp())
        removal = v_m / volume / (1 + level / SATURATION)
        level = (level + dose / volume) / (1 + removal * dt)
        if any(abs((t + 1) * dt - hour) < 1e-6 for hour in HOURS.tolist()):
            seen.append(level)
    return _measured(torch.stack(seen, dim=1), noise)


def _measured(concentration: Tensor, noise: Tensor) -> Tensor:
    return (0.01 + concentration).log() + ERROR * noise


def noise(n: int, generator: torch.Generator) -> Tensor:
    """Errors of measurement, shape `(n, 8)`."""
    return torch.randn(n, len(HOURS), generator=generator)


def observation(number: int) -> Tensor:
    """An observation, shape `(1, 8)`; 0 is that of the tutorial."""
    if number == 0:
        return high_fidelity(SHARP[None], noise(1, torch.Generator().manual_seed(7)))
    generator = torch.Generator().manual_seed(1_000 + number)
    theta = SHARP + 0.3 * torch.randn(3, generator=generator)
    return high_fidelity(theta[None], noise(1, generator))


def exact_posterior(x_o: Tensor) -> tuple[Tensor, Tensor]:
    """Samples `(n, 3)` of the posterior on a grid, and their log density `(n,)`."""
    lower, upper = PRIOR.base_dist.low, PRIOR.base_dist.high
    low, high = lower, upper
    for _ in range(4):  # refined where the mass is
        cell = (high - low) / _GRID
        axes = [low[i] + cell[i] * (torch.arange(_GRID) + 0.5) for i in range(3)]
        grid = torch.cartesian_prod(*axes)
        clean = high_fidelity(grid, torch.zeros(len(HOURS)))
        log_mass = (-0.5 * ((x_o - clean) / ERROR).square().sum(1)).log_softmax(0)
        near = grid[log_mass > log_mass.max() - 12]
        low = (near.amin(0) - cell / 2).maximum(lower)
        high = (near.amax(0) + cell / 2).minimum(upper)
    torch.manual_seed(0)
    drawn = log_mass.exp().multinomial(_SAMPLES, replacement=True)
    samples = grid[drawn] + cell * (torch.rand(_SAMPLES, 3) - 0.5)
    return samples, log_mass[drawn] - cell.log().sum()


@torch.no_grad()
def divergence(posterior: Any, x_o: Tensor) -> float:
    """KL divergence of a posterior from the exact one, in nats."""
    samples, log_p = exact_posterior(x_o)
    members = getattr(posterior, "posteriors", [posterior])
    log_q = torch.stack([
        each.log_prob(samples, x=x_o, norm_posterior=False) for each in members
    ])
    log_q = log_q.logsumexp(0) - math.log(len(members))
    return float((log_p - log_q).mean())


def _from_prior(num_low: int, num_high: int, seed: int) -> MultilevelSimulations:
    return simulate_multilevel(
        [low_fidelity, high_fidelity],
        PRIOR,
        (num_low, num_high),
        noise=noise,
        seed=seed,
        **QUIET,
    )


@cache
def _hybrid_of_prior(seed: int) -> Any:
    """`HybridNPE` on draws from the prior, as many as in three rounds."""
    simulations = _from_prior(3 * NUM_LOW, NUM_HIGH, seed)
    torch.manual_seed(seed)
    inference = HybridNPE(PRIOR, "maf", config=SHORT, tracker=SilentTracker(), **QUIET)
    inference.append_multilevel_simulations(simulations).train()
    return inference.build_posterior()


def hybrid_npe(x_o: Tensor, seed: int) -> tuple[Any, dict]:
    """`HybridNPE`, whose network is that of all observations."""
    return _hybrid_of_prior(seed), {}


def mf_tsnpe(x_o: Tensor, seed: int, on: Any = "density") -> tuple[Any, dict]:
    """`MFTSNPE` with the settings of the tutorial."""
    low, _ = _from_prior(NUM_LOW, 2, seed)
    inference = MFTSNPE(
        PRIOR,
        x_o,
        "maf",
        num_members=3,
        acquisition=Acquisition(on=on, first_round=False, fixed_pool=False),
        shared_pretraining=False,
        truncation=Truncation(epsilon=1e-3, num_samples=2_000),
        num_coverage_simulations=0,
        seed=seed,
        train_options={"training_batch_size": 500, "learning_rate": 2e-3},
    ).append_lowfidelity_simulations(low.theta, low.x)
    posterior = inference.run(
        high_fidelity,
        NUM_HIGH,
        num_rounds=4,
        noise=noise,
        simulation_batch_size=NUM_HIGH,
        **QUIET,
    )
    return posterior, {"acceptance_rate": inference.summary["acceptance_rate"]}


@cache
def _first_round(make: Callable, num_high: int, seed: int) -> Any:
    """The first round, which all observations share."""
    inference = make(PRIOR, observation(0), "maf", seed=seed)
    simulations = _from_prior(NUM_LOW, num_high, seed)
    inference.append_multilevel_simulations(simulations).train()
    return inference


def _rounds(make: Callable, num_rounds: int) -> Callable:
    def run(x_o: Tensor, seed: int) -> tuple[Any, dict]:
        first = _first_round(make, NUM_HIGH // num_rounds, seed)
        inference = first.for_observation(x_o)
        posterior = inference.run(
            (low_fidelity, high_fidelity),
            (NUM_LOW, NUM_HIGH),
            num_rounds,
            noise=noise,
            **QUIET,
        )
        samples, _ = exact_posterior(x_o)
        region = inference.truncated_prior
        # of the region of the last round, without the one that follows from it
        region = TruncatedPrior(region.whole, region.cuts[:-1])
        kept = region.contains(samples).float().mean()
        summary = {k: v for k, v in inference.summary.items() if k != "failures"}
        return posterior, {**summary, "exact_mass_kept": float(kept)}

    return run


_hybrid = partial(HybridTSNPE, config=SHORT)
_wide = partial(_hybrid, truncation=Truncation(epsilon=1e-4, num_samples=20_000))


def _active(on: Any) -> Callable:
    acquisition = Acquisition(on=on, correct=True)
    return partial(_hybrid, acquisition=acquisition)


METHODS: dict[str, Callable[[Tensor, int], tuple[Any, dict]]] = {
    "hybrid-npe": hybrid_npe,
    "mf-tsnpe": mf_tsnpe,
    "mf-tsnpe-gain": partial(mf_tsnpe, on="gain"),
    "hybrid-tsnpe-2": _rounds(_hybrid, 2),
    "hybrid-tsnpe-3": _rounds(_hybrid, 3),
    "hybrid-tsnpe-5": _rounds(_hybrid, 5),
    "hybrid-tsnpe-3-epsilon-1e-4": _rounds(_wide, 3),
    "hybrid-tsnpe-3-af": _rounds(_active("density"), 3),
    "hybrid-tsnpe-3-af-gain": _rounds(_active("gain"), 3),
    "ml-tsnpe-3": _rounds(MLTSNPE, 3),
}


def record(method: str, number: int, seed: int) -> dict[str, Any]:
    """The distance of a method from the exact posterior."""
    x_o, start = observation(number), time.perf_counter()
    posterior, more = METHODS[method](x_o, seed)
    seconds = round(time.perf_counter() - start, 1)
    place = {"method": method, "observation": number, "seed": seed}
    return {**place, "kl": divergence(posterior, x_o), "seconds": seconds, **more}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the records that a file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, required=True)
    parser.add_argument("--observations", nargs="+", type=int, default=[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    known = set()
    if options.output.exists():
        for line in options.output.read_text().splitlines():
            known.add(
                tuple(json.loads(line)[k] for k in ("method", "observation", "seed"))
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for number in options.observations:
        for seed in options.seeds:
            for method in options.methods:
                if (method, number, seed) in known:
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    line = json.dumps(record(method, number, seed))
                with options.output.open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)


if __name__ == "__main__":
    main()
