"""sbi's NPE-PFN on the high-fidelity simulations: a network that is not trained.

A transformer reads the simulations as context (TabPFN). It needs the package `tabpfn`
and its weights, which are not part of sbi. Without them the method is skipped.
"""

from __future__ import annotations

from importlib.util import find_spec

from sbi.inference import NPE_PFN

from sbi_multilevel import MultilevelSimulations
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel_benchmarks.fit import Fit, runs_at
from sbi_multilevel_benchmarks.posterior_task import PosteriorTask
from sbi_multilevel_benchmarks.registry import register_method
from sbi_multilevel_benchmarks.task import BenchmarkTask


class PriorFittedNetwork:
    """NPE-PFN as a method of the benchmark."""

    needs_observations = True  # it has a posterior, and no density for each theta

    def why_skipped(self) -> str | None:
        """Why the method cannot run here; `None` if it can."""
        if find_spec("tabpfn") is None:
            return (
                "the package tabpfn is not installed. Install it with `pip install "
                "'sbi[tabpfn]'`, and let it download its weights once."
            )
        return None

    def __call__(
        self, task: BenchmarkTask, simulations: MultilevelSimulations, seed: int
    ) -> Fit:
        """The posterior with the high-fidelity simulations as context."""
        assert isinstance(task, PosteriorTask)
        high = simulations[-1]
        inference = NPE_PFN(
            task.prior, tracker=SilentTracker(), show_progress_bars=False
        )
        inference.append_simulations(high.theta, high.x)
        posterior = inference.build_posterior()
        runs = runs_at(-1, len(high), task)
        return Fit(posterior, high.x, num_epochs=0, runs=runs)


register_method("npe-pfn", PriorFittedNetwork())
