"""Computing time of this package, relative to plain sbi on the same simulations."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sbi.inference import NLE, NPE
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters

from sbi_multilevel import (
    MFNPE,
    HybridNLE,
    HybridNPE,
    OneCycle,
    TransferConfig,
    train_ensemble,
)
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.cost import interleaved, step_seconds
from sbi_multilevel_benchmarks.records import Table, joined
from sbi_multilevel_benchmarks.scale import (
    PRIOR,
    SCALED,
    append_all,
    cpu_seconds,
    simulations,
    training_costs,
)

_MODELS = ("maf", "nsf", "zuko_nsf")
_STEP_SIZES = (200, 2_000, 10_000)
_NUM_SIMULATIONS, _NUM_QUICK = (10_000, 100), (300, 40)
_SCALES, _SCALES_QUICK = ((100_000, 100), (1_000_000, 100)), ((500, 40),)
# enough that a network of sbi puts its mass inside the prior, and sampling ends
_QUICK_TRAINING = dict(max_num_epochs=3, training_batch_size=20, learning_rate=5e-3)
_PLAIN, _OURS = "import sbi.inference", "from sbi_multilevel import HybridNPE, MLNPE"

Run = Callable[[], Any]


@dataclass(frozen=True)
class Comparison:
    """Seconds of the same work.

    Args:
        work: What was done.
        plain: Seconds of sbi; `None` if sbi has nothing that is comparable.
        ours: Seconds of this package.
        aim: Largest ratio of the two that is aimed at; a text otherwise.
    """

    work: str
    plain: float | None
    ours: float
    aim: float | str

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        plain = "-" if self.plain is None else f"{self.plain:.3g}"
        ratio = "-" if self.plain is None else f"{self.ours / self.plain:.2f}"
        return self.work, plain, f"{self.ours:.3g}", ratio, str(self.aim)


class Speed:
    """The comparisons.

    Args:
        repeats: Runs of each, whose median is taken.
        quick: Whether few simulations and epochs try the command out.
    """

    def __init__(self, repeats: int = 5, quick: bool = False):
        self._repeats, self._quick = (1 if quick else repeats), quick
        self._options = _QUICK_TRAINING if quick else {}
        torch.manual_seed(0)
        self._sims = simulations(*(_NUM_QUICK if quick else _NUM_SIMULATIONS))
        self._posteriors: list[Any] = []

    def works(self, scale: bool = False) -> dict[str, Callable[[], Comparison]]:
        """The comparisons by name.

        Args:
            scale: Whether those with many simulations are among them.
        """
        works: dict[str, Callable[[], Comparison]] = {}
        for model in _MODELS:
            works[f"train-npe-{model}"] = partial(self.train, NPE, HybridNPE, model)
        works["train-nle-maf"] = partial(self.train, NLE, HybridNLE, "maf")
        for name in ("sample", "log-prob", "sample-batched"):
            works[name] = partial(self.infer, name)
        if not self._quick:  # the width of slices is tuned for a minute
            works["mcmc"] = self.mcmc
        for model in _MODELS:
            for size in _STEP_SIZES[:1] if self._quick else _STEP_SIZES:
                works[f"step-{model}-{size}"] = partial(self.step, model, size)
        works["ensemble"], works["import"] = self.ensemble, self.imports
        scales = _SCALES_QUICK if self._quick else _SCALES
        for counts in scales if scale else ():
            for name in SCALED:
                key = f"scale-{name.lower()}-{counts[0]}"
                works[key] = partial(self.scale, name, counts)
        return works

    def trainer(self, cls: type, model: str, **options: Any) -> Any:
        """A trainer with the simulations; of sbi, with the pool of both levels."""
        options |= {"tracker": SilentTracker(), "show_progress_bars": False}
        return append_all(cls(PRIOR, density_estimator=model, **options), self._sims)

    def trained(self, cls: type, model: str = "maf") -> Any:
        """A trainer after training."""
        torch.manual_seed(1)
        trainer = self.trainer(cls, model)
        trainer.train(**self._options)
        return trainer

    def train(self, plain: type, ours: type, model: str) -> Comparison:
        """Training with default settings."""
        runs = [partial(self.trained, cls, model) for cls in (plain, ours)]
        work = f"`{ours.__name__}.train`, {model}"
        return Comparison(work, *self._seconds(runs), 1.0)

    def infer(self, work: str) -> Comparison:
        """Samples and densities of NPE."""
        if not self._posteriors:
            both = (self.trained(cls) for cls in (NPE, HybridNPE))
            self._posteriors = [trainer.build_posterior() for trainer in both]
        theta, xs = PRIOR.sample((1_000,)), self._sims[1].x[:10]
        quiet = {"show_progress_bars": False}
        call = {
            "sample": lambda p: p.sample((1_000,), x=xs[:1], **quiet),
            "log-prob": lambda p: p.log_prob(theta, x=xs[:1]),
            "sample-batched": lambda p: p.sample_batched((1_000,), x=xs, **quiet),
        }[work]
        runs = [partial(call, posterior) for posterior in self._posteriors]
        name = {
            "sample": "1 000 samples of NPE",
            "log-prob": "`log_prob` of 1 000 theta",
            "sample-batched": "`sample_batched`, 1 000 samples for 10 observations",
        }[work]
        return Comparison(name, *self._seconds(runs), 1.2)

    def mcmc(self) -> Comparison:
        """Samples of NLE by MCMC."""
        parameters = MCMCPosteriorParameters("slice_np_vectorized", num_chains=20)
        runs = []
        for cls in (NLE, HybridNLE):
            posterior = self.trained(cls).build_posterior(
                posterior_parameters=parameters
            )
            x = self._sims[1].x[:1]
            runs.append(
                partial(posterior.sample, (1_000,), x=x, show_progress_bars=False)
            )
        work = "1 000 samples of NLE by MCMC, 20 chains"
        return Comparison(work, *self._seconds(runs), 1.2)

    def step(self, model: str, size: int) -> Comparison:
        """A training step of MLNPE."""
        both = step_seconds(model, size, ("rescale_project",), self._repeats)
        return Comparison(f"step of MLNPE, {model}, {size} simulations", *both, 1.15)

    def ensemble(self) -> Comparison:
        """An ensemble with a schedule, relative to one network with sbi's settings."""

        def members() -> None:
            config = TransferConfig(schedule=OneCycle())
            trainer = self.trainer(MFNPE, "maf", config=config)
            train_ensemble(trainer, num_members=5, train_options=self._options)

        runs = [partial(self.trained, MFNPE), members]
        work = "5 MFNPE with `OneCycle()`, relative to one MFNPE without"
        return Comparison(work, *self._seconds(runs), 1.5)

    def imports(self) -> Comparison:
        """Imports, in new processes."""
        runs = [partial(_seconds_of_import, code) for code in (_PLAIN, _OURS)]
        plain, ours = interleaved(runs, self._repeats)
        return Comparison(f"`{_OURS}`", plain, ours, 1.05)

    def scale(self, name: str, counts: tuple[int, int]) -> Comparison:
        """Training with many simulations, in a process of its own."""
        seconds, peak = training_costs(name, counts)
        work = f"{name}, {joined(counts)} simulations, 2 epochs a stage"
        return Comparison(f"{work} ({peak:.0f} MiB)", None, seconds, "finishes")

    def _seconds(self, runs: Sequence[Run]) -> list[float]:
        return interleaved([partial(cpu_seconds, run) for run in runs], self._repeats)


def _seconds_of_import(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", code], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def compare(speed: Speed, names: Sequence[str], scale: bool) -> Iterator[Comparison]:
    """The comparisons with these names, or all."""
    works = speed.works(scale or any(name.startswith("scale") for name in names))
    unknown = sorted({*names} - {*works})
    if unknown:
        raise ValueError(f"no such works: {unknown}. Known: {', '.join(works)}.")
    for name in names or works:
        yield works[name]()


def main(given: Sequence[str]) -> None:
    """Run `python -m sbi_multilevel_benchmarks speed`."""
    parser = argparse.ArgumentParser(prog="speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="try the command out")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    parser.add_argument("--only", nargs="+", default=[], help="names of rows")
    parser.add_argument("--scale", action="store_true", help="10**6 simulations too")
    parser.add_argument("--out", type=Path, help="file of JSON lines, a row each")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    speed, done = Speed(options.repeats, options.quick), []
    for comparison in compare(speed, options.only, options.scale):
        done.append(comparison)
        print(json.dumps(asdict(comparison)), file=sys.stderr, flush=True)
        if options.out is not None:
            lines = [json.dumps(asdict(each)) + "\n" for each in done]
            options.out.write_text("".join(lines), encoding="utf-8")
    titles = ("plain sbi (seconds)", "this package (seconds)")
    header = ("work", *titles, "ratio", "aim")
    print(Table(header, tuple(comparison.cells for comparison in done)))
