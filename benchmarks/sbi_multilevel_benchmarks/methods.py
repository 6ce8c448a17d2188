"""Methods of the benchmark: each turns the same simulations into an estimator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from sbi.inference import NLE, NPE
from torch import Tensor

from sbi_multilevel import MultilevelConfig, MultilevelSimulations
from sbi_multilevel.level_maps import AlignmentKind
from sbi_multilevel.losses.gradients import ADJUSTMENTS
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.fitted import Fit, evaluated, only, runs_of
from sbi_multilevel_benchmarks.hybrid_methods import HYBRID_METHODS
from sbi_multilevel_benchmarks.posterior_methods import POSTERIOR_METHODS
from sbi_multilevel_benchmarks.registry import METHODS, register_method
from sbi_multilevel_benchmarks.tasks import BenchmarkTask, PosteriorTask
from sbi_multilevel_benchmarks.transfer_methods import TRANSFER_METHODS, build_trainer


def _train_single(
    task: BenchmarkTask, theta: Tensor, x: Tensor, level: int = -1
) -> Fit:
    trainer = {"nle": NLE, "npe": NPE}[task.family](
        task.prior,
        density_estimator=task.build_network(),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    estimator = trainer.append_simulations(theta, x).train()
    epochs = trainer.summary["epochs_trained"][-1]
    runs = only(level, len(x), task)
    return Fit(evaluated(task, [estimator]), x, epochs, runs=runs)


def high(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """sbi's NPE/NLE, as it is, on the high-fidelity rows of the pairs."""
    rows = simulations[-1]
    return _train_single(task, rows.theta, rows.x)


def low(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """sbi's NPE/NLE, as it is, on the rows of level 0."""
    rows = simulations[0]
    fit = _train_single(task, rows.theta, rows.x, level=0)
    return replace(fit, trained_on=rows.x[:0])


def oracle(task: BenchmarkTask, simulations: MultilevelSimulations, seed: int) -> Fit:
    """sbi's NPE/NLE on many high-fidelity rows that nobody could afford."""
    theta, x = task.simulate_high(task.oracle_size, seed)
    return _train_single(task, theta, x)


def equal_cost(
    task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
) -> Fit:
    """sbi's NPE/NLE on as many high-fidelity rows as all simulations cost."""
    affordable = int((simulations.total_cost or 0.0) // task.costs[-1])
    theta, x = task.simulate_high(affordable, seed)
    return _train_single(task, theta, x)


@dataclass(frozen=True)
class MultilevelMethod:
    """ML-NPE or ML-NLE.

    Args:
        config: The recipe to train with.
        full_batch: Whether to train with the reference's settings (full batches,
            learning rate 1e-4, the task's number of epochs) rather than sbi's defaults.
    """

    config: MultilevelConfig
    full_batch: bool = False

    def __call__(
        self, task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
    ) -> Fit:
        trainer = build_trainer(task, self.config)
        trainer.append_multilevel_simulations(simulations)
        if self.full_batch:
            estimator = trainer.train(
                training_batch_size=2 * sum(simulations.num_simulations),
                learning_rate=1e-4,
                max_num_epochs=task.paper_epochs,
            )
        else:
            estimator = trainer.train()
        epochs = trainer.summary["epochs_trained"][-1]
        return Fit(evaluated(task, [estimator]), simulations[-1].x, epochs)


def _paper(adjustment: str, alignment: str | None) -> MultilevelMethod:
    config = MultilevelConfig(
        adjustment=adjustment,
        alignment=alignment,
        early_stopping=False,
        betas=(0.85, 0.999),
    )
    return MultilevelMethod(config, full_batch=True)


def _aligned(alignment: AlignmentKind) -> MultilevelMethod:
    return MultilevelMethod(
        MultilevelConfig(alignment=alignment, stopping="telescoping")
    )


def _name(adjustment: str) -> str:
    return "" if adjustment == "rescale_project" else f"-{adjustment}"


for _method_name, _method in {
    "high": high,
    "low": low,
    "equal-cost": equal_cost,
    "oracle": oracle,
    # the default, and the loss that is trained on as the rule of early stopping
    "ml-bounded": MultilevelMethod(MultilevelConfig()),
    "ml": MultilevelMethod(MultilevelConfig(stopping="telescoping")),
    # the kinds of alignment
    "ml-paired": _aligned("affine"),
    "ml-own": _aligned("standardize"),
    # the reference's settings and alignment, every adjustment
    **{f"ml-paper{_name(a)}": _paper(a, "standardize") for a in ADJUSTMENTS},
    # the reference's settings with other alignments
    "ml-paper-paired": _paper("rescale_project", "affine"),
    "ml-paper-unaligned": _paper("rescale_project", None),
    # transfer, and ensembles
    **TRANSFER_METHODS,
    # our recipe, and what its parts are worth
    **HYBRID_METHODS,
    # those for tasks scored by posteriors only
    **POSTERIOR_METHODS,
}.items():
    register_method(_method_name, _method)


def check_method(method: str, task: BenchmarkTask) -> None:
    """Raise if a method cannot run on a task.

    Raises:
        ValueError: If it simulates for each observation, which the task has none of, or
            needs settings of the reference code, which the task has none of.
    """
    is_posterior_task = isinstance(task, PosteriorTask)
    if method in POSTERIOR_METHODS and not is_posterior_task:
        raise ValueError(
            f"method={method!r} infers one observation after another, but task="
            f"{task.name!r} has none: it scores density estimators. Choose one of the "
            "tasks scored by posteriors, or another method."
        )
    if getattr(METHODS[method], "full_batch", False) and is_posterior_task:
        raise ValueError(
            f"method={method!r} trains as the reference code of ML-NPE, which does not "
            f"have task={task.name!r}. Choose 'ml', or another task."
        )


def fit(method: str, task: BenchmarkTask, n: tuple[int, ...], seed: int) -> Fit:
    """Simulate and train, all seeded.

    Args:
        method: One of `METHODS`.
        task: The task.
        n: Rows of each level.
        seed: Seed of the simulations, the network and the order of batches.

    Raises:
        ValueError: If the method cannot run on the task.
    """
    check_method(method, task)
    simulations = task.simulate(n, seed)
    torch.manual_seed(seed)
    result = METHODS[method](task, simulations, seed)
    return replace(result, runs=result.runs or runs_of(simulations))
