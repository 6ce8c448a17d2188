r"""How many multilevel trainings diverge: short trainings on random tasks.

The result of a training is its *excess*, the mean over new simulations of

.. math:: \log p(\theta) - \log q(\theta \mid x),

in nats: 0 for the prior, negative for a better posterior. For NLE the posterior is
normalized over draws :math:`\theta_k` of the prior, :math:`q(\theta \mid x) = p(\theta)
\, q(x \mid \theta) / \frac1K \sum_k q(x \mid \theta_k)`.

Tasks are linear-Gaussian at the highest level. Lower levels differ in gain, offset,
curvature, and in the scale and the tails of their noise. Networks, families, numbers of
levels and pairs, gradient adjustments, alignments and learning rates are drawn as well,
from settings that are difficult: few pairs, heavy tails, large steps. The learning rate
can be given instead, the same for all tasks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbi_multilevel import MLNLE, MLNPE, MultilevelConfig
from sbi_multilevel.losses.gradients import ADJUSTMENTS
from sbi_multilevel.losses.held_out import STOPPING_RULES
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.pool import run_records
from sbi_multilevel_benchmarks.records import Record, Table, over_seeds
from sbi_multilevel_benchmarks.run import quiet

_MAX_EPOCHS, _NUM_TEST, _NUM_NORMALIZING = 100, 200, 200
SINGLE = "single-level"  # sbi's NPE or NLE on the high-fidelity simulations alone
RULES = (*STOPPING_RULES, SINGLE)
_LIMITS = (0.5, 10.0)  # nats above the prior


@dataclass(frozen=True, eq=False)
class RandomTask:
    """A linear-Gaussian task with lower levels that differ from the highest.

    Args:
        loadings: Matrix from theta to x, shape `(d_theta, d_x)`.
        scale: Standard deviation of the noise.
        lower: For each lower level its gain `(d_x,)`, offset, curvature, factor to the
            noise, and degrees of freedom of the noise (0: Gaussian).
    """

    loadings: Tensor
    scale: float
    lower: tuple[tuple[Tensor, float, float, float, float], ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> RandomTask:
        """A random task."""
        dims, features = int(rng.choice([1, 2, 5])), int(rng.choice([2, 5, 10]))
        loadings = _tensor(rng.normal(size=(dims, features)) / math.sqrt(dims))
        scale = float(rng.choice([0.1, 0.3, 1.0]))
        lower = []
        for _ in range(int(rng.choice([1, 1, 2]))):
            equal = rng.choice([1.0, 1.0, 0.5, 2.0, -1.0, 0.0]) * np.ones(features)
            gain = equal if rng.random() < 0.6 else rng.normal(size=features)
            lower.append((
                _tensor(gain),
                float(rng.choice([0.0, 0.0, 1.0, 5.0])),
                float(rng.choice([0.0, 0.0, 0.5])),
                float(rng.choice([1.0, 1.0, 0.3, 3.0])),
                float(rng.choice([0.0, 0.0, 1.0, 1.5, 2.0, 3.0])),
            ))
        return cls(loadings, scale, tuple(lower))

    @property
    def prior(self) -> MultivariateNormal:
        """A standard normal distribution."""
        dims = len(self.loadings)
        return MultivariateNormal(torch.zeros(dims), torch.eye(dims))

    def simulate(
        self, levels: Sequence[int], num: int, rng: np.random.Generator
    ) -> tuple[Tensor, list[Tensor]]:
        """Theta of the prior, and x of some levels at the same theta and noise."""
        dims, features = self.loadings.shape
        theta = _tensor(rng.normal(size=(num, dims)))
        normal, uniform = rng.normal(size=(num, features)), rng.random((num, features))
        return theta, [self._x(level, theta, normal, uniform) for level in levels]

    def _x(
        self, level: int, theta: Tensor, normal: np.ndarray, uniform: np.ndarray
    ) -> Tensor:
        signal = theta @ self.loadings
        if level == len(self.lower):
            return signal + self.scale * _tensor(normal)
        gain, offset, curvature, factor, freedom = self.lower[level]
        if freedom > 0:
            chi2 = np.maximum(stats.chi2.ppf(uniform, freedom), 1e-12)
            normal = normal / np.sqrt(chi2 / freedom)
        signal = gain * (signal + curvature * signal**2) + offset
        return signal + self.scale * factor * _tensor(normal)


@dataclass(frozen=True)
class DivergenceRun:
    """A training on the random task of a seed.

    Args:
        seed: Seed of task, settings, simulations and network.
        stopping: The held-out loss that early stopping follows, or `"single-level"` for
            the same network on the high-fidelity simulations alone.
        rate: The learning rate; drawn if `None`.
    """

    seed: int
    stopping: str
    rate: float | None = None

    @property
    def identity(self) -> Record:
        """The beginning of the record, which identifies the run."""
        return asdict(self)


def run_divergence(run: DivergenceRun) -> Record:
    """Train and evaluate, and return the record."""
    rng = np.random.default_rng(run.seed)
    task, settings = RandomTask.draw(rng), _settings(rng)
    if run.rate is not None:
        settings["learning_rate"] = run.rate
    counts = [int(rng.choice([200, 300, 500]))]
    counts += [int(rng.choice([10, 30, 50, 100])) for _ in task.lower]
    if len(counts) > 2:
        counts[1] = 2 * max(counts[1:])
    with quiet(run.seed):
        is_single = run.stopping == SINGLE
        stopping = "bounded" if is_single else run.stopping
        trainer = _untrained(task, settings, stopping)
        trainer = _with_simulations(trainer, task, counts, rng)
        if is_single:
            high = trainer.multilevel_simulations[-1]
            trainer = _untrained(task, settings, stopping)
            trainer.append_simulations(high.theta, high.x)
        theta, (x,) = task.simulate([len(task.lower)], _NUM_TEST, rng)
        network = trainer.train(
            training_batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            max_num_epochs=_MAX_EPOCHS,
        )
        excess = _excess(network.eval(), task, theta, x, settings["family"])
    return {
        **run.identity,
        **settings,
        "num_simulations": counts,
        "dims": [*task.loadings.shape],
        "excess": float(np.nan_to_num(excess.mean().item(), nan=math.inf)),
        "epochs": len(trainer.summary["training_loss"]),
    }


def _settings(rng: np.random.Generator) -> dict[str, Any]:
    network = str(rng.choice(["maf", "maf", "nsf", "mdn", "zuko_maf"]))
    family = str(rng.choice(["NPE", "NPE", "NLE"]))
    if family == "NLE" and network == "mdn":
        network = "maf"
    alignment = str(rng.choice(["none", "none", "affine", "standardize"]))
    return {
        "family": family,
        "network": network,
        "adjustment": str(rng.choice(["rescale_project", *ADJUSTMENTS])),
        "alignment": None if alignment == "none" else alignment,
        "batch_size": int(rng.choice([200, 1_000])),
        "learning_rate": float(rng.choice([1e-3, 3e-3, 1e-2])),
    }


def _untrained(task: RandomTask, settings: dict[str, Any], stopping: str) -> Any:
    is_npe, model = settings["family"] == "NPE", settings["network"]
    size = {"hidden_features": 20}
    if model != "mdn":
        size["num_transforms"] = 2
    config = MultilevelConfig(
        adjustment=settings["adjustment"],
        alignment=settings["alignment"],
        stopping=stopping,  # pyright: ignore[reportArgumentType]
    )
    return (MLNPE if is_npe else MLNLE)(
        task.prior,
        density_estimator=(posterior_nn if is_npe else likelihood_nn)(model, **size),
        config=config,
        tracker=SilentTracker(),
        show_progress_bars=False,
    )


def _with_simulations(
    trainer: Any, task: RandomTask, counts: Sequence[int], rng: np.random.Generator
) -> Any:
    theta, (x,) = task.simulate([0], counts[0], rng)
    trainer.append_multilevel_simulations(theta, x, level=0)
    for level, count in enumerate(counts[1:], start=1):
        theta, (x, coarse) = task.simulate([level, level - 1], count, rng)
        trainer.append_multilevel_simulations(theta, x, coarse, level=level)
    return trainer


@torch.no_grad()
def _excess(
    network: Any, task: RandomTask, theta: Tensor, x: Tensor, family: str
) -> Tensor:
    if family == "NPE":
        log_q = network.log_prob(theta[None], condition=x)[0]
        return task.prior.log_prob(theta) - log_q
    draws = task.prior.sample((_NUM_NORMALIZING,))
    log_q = network.log_prob(x[None], condition=theta)[0]
    each = [
        network.log_prob(x[None], condition=draw.expand(len(x), -1))[0]
        for draw in draws
    ]
    normaliser = torch.logsumexp(torch.stack(each), dim=0) - math.log(len(draws))
    return normaliser - log_q


def run_divergences(
    seeds: Sequence[int],
    num_workers: int = 1,
    before: Sequence[Record] = (),
    rules: Sequence[str] = RULES,
    rates: Sequence[float | None] = (None,),
) -> Iterator[Record]:
    """Records of all seeds and rules as they end, failures included.

    Args:
        seeds: Seeds.
        num_workers: Processes, each of one thread.
        before: Records of earlier runs, which are not repeated.
        rules: Stopping rules.
        rates: Learning rates; `None` for one that is drawn for each seed.
    """
    done = {_run_of(record) for record in before if "error" not in record}
    runs = [
        DivergenceRun(seed, rule, rate)
        for seed in seeds
        for rule in rules
        for rate in rates
    ]
    groups = [[run] for run in runs if run not in done]
    return run_records(run_divergence, groups, num_workers)


def divergence_table(records: Sequence[Record]) -> Table:
    """Trainings by stopping rule and learning rate that ended above the prior."""
    last = {_run_of(record): record for record in records if "stopping" in record}
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run, record in last.items():
        rate = "drawn" if run.rate is None else f"{run.rate:g}"
        # a training that failed has no posterior
        groups[run.stopping, rate].append(record.get("excess", math.inf))
    rows = []
    for (rule, rate), excess in sorted(groups.items()):
        values = np.array(excess)
        above = (str(int((values > limit).sum())) for limit in _LIMITS)
        clipped = over_seeds(np.minimum(values, _LIMITS[-1]).tolist())
        rows.append((
            rule,
            rate,
            str(len(values)),
            *above,
            f"{values.max():.3g}",
            f"{clipped}",
        ))
    above = tuple(f"> prior + {limit:g} nats" for limit in _LIMITS)
    clipped = f"mean excess, clipped at {_LIMITS[-1]:g}"
    columns = ("stopping", "learning rate", "trainings", *above, "largest", clipped)
    return Table(columns, tuple(rows))


def _run_of(record: Record) -> DivergenceRun:
    return DivergenceRun(record["seed"], record["stopping"], record.get("rate"))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
