"""Figures and tables of Krouglova et al. (2026), arXiv:2502.08416."""

from __future__ import annotations

from sbi_multilevel_benchmarks.papers.experiment import (
    Counts,
    Experiment,
    Published,
    Sweep,
    register_experiments,
)
from sbi_multilevel_benchmarks.papers.neuroscience import (
    CostTable,
    PlausibleShare,
    Predictive,
    Traces,
)
from sbi_multilevel_benchmarks.papers.numbers import Informativeness, LevelDistances
from sbi_multilevel_benchmarks.papers.pictures import (
    CoverageCurves,
    Outputs,
    Posteriors,
)

_LOW = (10_000, 100_000)
_HIGH = (50, 100, 1_000, 10_000, 100_000)
_PUBLISHED_HIGH = (50, 100, 1_000)  # in the file of the published simulations
_CELL_HIGH = (50, 100, 1_000)
_PERTURBED = (
    "ou2-delta0.1",
    "ou2-delta1",
    "ou2-delta1-reversed",
    "ou2-useless",
)
_SEQUENTIAL = ("tsnpe", "mf-tsnpe", "mf-tsnpe-af-paper")
_PLASTICITY = ("plasticity-low-3", "plasticity-low-6", "plasticity")


def _counts(low: tuple[int, ...], high: tuple[int, ...]) -> tuple[Counts, ...]:
    return tuple((n, m) for n in low for m in high)


def _of_ou2(method: str, low: int, values: str) -> tuple[Published, ...]:
    """C2ST with 50, 100 and 1 000 high-fidelity simulations."""
    return tuple(
        Published("ou2-published", (low, n), method, "c2st", float(value))
        for n, value in zip(_PUBLISHED_HIGH, values.split())
    )


def _amortized(
    task: str, low: tuple[int, ...] = _LOW, has_fixed: bool = False
) -> Sweep:
    high = _PUBLISHED_HIGH if has_fixed else _HIGH
    methods = ("high", "mf", "mf-unaligned")
    return Sweep(task, methods, _counts(low, high), None, has_fixed)


def _sequential(task: str, has_fixed: bool = False) -> Sweep:
    counts = _counts(_LOW[:1], (50, 100))
    return Sweep(task, _SEQUENTIAL, counts, 10, has_fixed)


def _of_cell(*methods: str, high: tuple[int, ...] = _CELL_HIGH) -> Sweep:
    return Sweep("l5pc", methods, _counts(_LOW[:1], high))


def _nltp(task: str, counts: Counts, method: str, mean: float, sd: float) -> Published:
    return Published(task, counts, method, "nltp", mean, sd)


_BENCHMARKS = (
    Experiment(
        "transfer: fig 1, 5, 6, 10",
        "the method, and outputs of the tasks",
        "illustration",
        studies=(Outputs("ou2"), Outputs("sir"), Outputs("blob", 4)),
    ),
    Experiment(
        "transfer: fig 2",
        "SIR, SLCP and OU2: C2ST and MMD of all methods",
        "reproduced",
        "MF-NPE is better than NPE on all tasks with 50 to 1 000 high-fidelity "
        "simulations. On OU2 our C2ST is at most 0.02 above the published one, and "
        "active points help within errors. More than 10 000 low-fidelity or 1 000 "
        "high-fidelity simulations were not run.",
        (
            *(_amortized(task) for task in ("sir", "slcp")),
            _amortized("ou2-published", _LOW, True),
            *(_sequential(task) for task in ("sir", "slcp")),
            _sequential("ou2-published", True),
        ),
        published=(
            *_of_ou2("high", 10_000, "0.80 0.78 0.64"),
            *_of_ou2("mf", 10_000, "0.74 0.72 0.60"),
            *_of_ou2("mf", 100_000, "0.73 0.69 0.59"),
            *_of_ou2("mf-tsnpe-af-paper", 10_000, "0.73 0.70 0.61"),
        ),
    ),
    Experiment(
        "transfer: fig 7",
        "OU2: posteriors at an observation",
        "reproduced",
        studies=(
            Posteriors(Sweep("ou2", ("high", "low", "mf-unaligned"), ((10_000, 100),))),
        ),
    ),
    Experiment(
        "transfer: fig 8",
        "OU2, OU3 and OU4, and MF-ABC",
        "partly",
        "MF-NPE is better than NPE with 2, 3 and 4 parameters, and gains less with "
        "more. MF-ABC was not run at size.",
        tuple(
            Sweep(
                task,
                ("high", "mf", "mf-unaligned", "mf-abc"),
                _counts((1_000, *_LOW), _HIGH),
            )
            for task in ("ou2", "ou3", "ou4")
        ),
    ),
    Experiment(
        "transfer: fig 9",
        "a low fidelity with more parameters than the high fidelity",
        "reproduced",
        "C2ST falls from 0.82 to 0.73 with 50 high-fidelity simulations.",
        (Sweep("ou-reverse", ("high", "mf"), _counts(_LOW, _HIGH)),),
    ),
    Experiment(
        "transfer: fig 11",
        "Gaussian blob: NLTP and NRMSE",
        "reproduced",
        "With images of 32 x 32 in place of 256 x 256, and 1 000 low-fidelity "
        "simulations.",
        (Sweep("blob", ("high", "mf"), _counts((1_000, *_LOW), _HIGH)),),
    ),
    Experiment(
        "transfer: fig 12, 13",
        "MF-ABC on OU2",
        "partly",
        "Run once. C2ST is 0.99 with 170 low-fidelity and 50 high-fidelity simulations "
        "and 0.91 with 3 330 and 1 000, at ten observations.",
        (Sweep("ou2", ("mf-abc",), _counts((170, 330, 3_330), (50, 100, 1_000)), 10),),
        (Posteriors(Sweep("ou2", ("mf-abc",), ((330, 100),))),),
        num_seeds=1,
    ),
    Experiment(
        "transfer: fig 4",
        "information and coherence of the levels, and C2ST",
        "reproduced",
        "C2ST is 0.59 with sigma + 0.1 and 0.75 with sigma + 1; with the order "
        "reversed it is 0.775 without alignment and 0.74 with it.",
        tuple(
            Sweep(task, ("high", "mf", "mf-unaligned"), _counts(_LOW[:1], (50, 100)))
            for task in _PERTURBED
        ),
        (Informativeness(_PERTURBED),),
    ),
    Experiment(
        "transfer: fig 20",
        "pre-training on both levels",
        "not run",
        "Implemented and tested, not run at size.",
        tuple(
            Sweep(task, ("mf", "mf-joint"), _counts(_LOW[:1], _CELL_HIGH))
            for task in ("ou2", "slcp")
        ),
    ),
    Experiment(
        "transfer: fig 21, table 3",
        "posteriors of the low and the high fidelity, and their distance",
        "not run",
        "Not run beyond the size smoke.",
        studies=(
            LevelDistances({
                "slcp": ("0.13 ± 0.05", "0.91 ± 0.03"),
                "sir": ("0.04 ± 0.03", "0.57 ± 0.03"),
                "ou2": ("1.00 ± 0.11", "0.98 ± 0.02"),
                "ou3": ("0.69 ± 0.09", "0.98 ± 0.01"),
                "ou4": ("0.24 ± 0.05", "0.90 ± 0.04"),
            }),
            *(
                Posteriors(Sweep(task, ("low", "oracle"), ((10_000, 50),)))
                for task in ("slcp", "sir", "ou2", "ou3", "ou4")
            ),
        ),
    ),
    Experiment(
        "transfer: fig 22",
        "calibration by TARP",
        "differs",
        "With 50 and 100 high-fidelity simulations MF-NPE is too narrow on OU2, by "
        "more than NPE. The paper has larger numbers.",
        studies=tuple(
            CoverageCurves(
                Sweep(task, ("high", "mf-unaligned"), _counts(_LOW[:1], (1_000,)))
            )
            for task in ("ou2", "slcp", "sir")
        ),
    ),
)

_NEUROSCIENCE = (
    Experiment(
        "transfer: fig 3b, 14, table 5",
        "L5PC: NLTP and NRMSE by high-fidelity simulations",
        "partly",
        "With a synthetic morphology, so that values cannot be compared, but their "
        "order: MF-NPE is better than NPE by 1.7, 2.9 and 1.3 nats with 50, 100 and "
        "1 000 simulations. 10 000 were not run.",
        (_of_cell("high", "mf", "mf-unaligned", "ml", "hybrid"), _of_cell("oracle")),
        published=(
            _nltp("l5pc", (10_000, 10_000), "high", -5.87, 0.04),
            _nltp("l5pc", (10_000, 1_000), "mf-unaligned", -5.73, 0.05),
            _nltp("l5pc", (10_000, 50), "mf-tsnpe-af-paper", -5.08, 0.27),
        ),
    ),
    Experiment(
        "transfer: fig 3c, 15",
        "L5PC: calibration and posteriors",
        "not run",
        "Not run beyond the size smoke.",
        studies=(
            CoverageCurves(_of_cell("high", "mf-unaligned", high=(1_000,))),
            Posteriors(_of_cell("high", "mf-unaligned", high=(1_000,))),
        ),
    ),
    Experiment(
        "transfer: fig 16, 17",
        "L5PC: posterior predictives",
        "reproduced",
        "With 50 simulations those of MF-NPE are much narrower than those of NPE, and "
        "near the observation.",
        studies=(
            Predictive(_of_cell("high", "mf-unaligned", "hybrid", high=(50,))),
            Predictive(_of_cell("high", "mf-unaligned", "hybrid", high=(1_000,))),
        ),
    ),
    Experiment(
        "transfer: fig 3a, 18",
        "L5PC: traces of both levels",
        "reproduced",
        studies=(Traces(),),
    ),
    Experiment(
        "transfer: table 4",
        "L5PC: cost of simulations and of training",
        "differs",
        "The levels of the synthetic cell differ in cost by a factor of five, so that "
        "10 000 low-fidelity simulations cost as much as 1 900 high-fidelity ones.",
        (_of_cell("high", "mf-unaligned", "hybrid"),),
        (CostTable("l5pc"),),
        num_seeds=5,
    ),
    Experiment(
        "transfer: fig 3d, 3e, 3f, 19",
        "plastic spiking network: NLTP, and levels of 3, 6 and 12 parameters",
        "partly",
        "With 50 networks of 512 + 128 neurons and 12 parameters no method is better "
        "than the prior. The network of the paper has 4 096 + 1 024 neurons "
        "(`plasticity-full`), and 1 000 simulations and more.",
        tuple(
            Sweep(task, ("high", "mf", "hybrid"), _counts(_LOW[:1], (50, 100, 500)))
            for task in _PLASTICITY
        ),
        (
            PlausibleShare(
                Sweep("plasticity", ("high", "mf", "hybrid"), _counts(_LOW[:1], (50,)))
            ),
        ),
        published=(
            _nltp("plasticity-full", (100_000, 10_000), "high", -4.72, 0.01),
            _nltp("plasticity-full", (100_000, 1_000), "mf-unaligned", -4.08, 0.01),
        ),
    ),
    Experiment(
        "transfer: table 1, 2",
        "bounds of the priors of the neuroscience tasks",
        "reproduced",
        "They are the bounds of `l5pc` and `plasticity`; the prior of the latter is "
        "restricted to stable rules in addition.",
    ),
)

register_experiments(*_BENCHMARKS, *_NEUROSCIENCE)
