r"""Benchmark of methods for simulators of several fidelities: tasks, methods, metrics.

`python -m sbi_multilevel_benchmarks TASK [TASK ...] --methods METHOD [METHOD ...]
--num-simulations N_0,N_1 [...] --out FILE` trains each method on each number of
simulations with each seed, and adds a line to the file when a run ends; the same
command again runs what the file lacks. All methods have the same simulations and the
same test points. `python -m sbi_multilevel_benchmarks report FILE [FILE ...] --out
FOLDER` draws tables and curves.

Adding a task or a method
-------------------------

Write one file, and name it on the command line:
`python -m sbi_multilevel_benchmarks my-task --methods high my-method --plugin my.py`.
A file in `tasks/` or `methods/` is imported without being named.

::

    import torch
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn
    from sbi.utils import BoxUniform

    from sbi_multilevel_benchmarks import (
        BenchmarkTask, Fit, evaluated, register_method, register_task
    )
    from sbi_multilevel_benchmarks.metrics import nlpd

    class Shifted(BenchmarkTask):
        family, metric = "npe", "nlpd"
        num_simulations = (1_000, 50)  # of each level; the default
        costs = (1.0, 20.0)
        prior = BoxUniform(torch.zeros(2), torch.ones(2))
        simulators = (  # of theta and noise, lowest fidelity first
            lambda theta, noise: theta + 0.1 * noise,
            lambda theta, noise: theta + 0.1 * theta**2 + 0.1 * noise,
        )

        @staticmethod
        def noise(n, generator):
            return torch.randn(n, 2, generator=generator)

        def build_network(self):
            return posterior_nn("nsf")

        def evaluate(self, estimator, trained_on):  # the main metric first
            theta, x = self.simulate_high(1_000, seed=10_000)
            return {"nlpd": nlpd(estimator, theta, x, self.prior).tolist()}

    def half_of_the_pairs(task, simulations, seed):
        high = simulations[-1]
        half = len(high) // 2
        trainer = NPE(task.prior, density_estimator=task.build_network())
        trainer.append_simulations(high.theta[:half], high.x[:half])
        estimator = trainer.train()
        epochs = trainer.summary["epochs_trained"][-1]
        # runs of the simulator of each level, for the cost
        return Fit(evaluated(task, [estimator]), high.x, epochs, runs=(0, half))

    register_task("my-task", lambda data: Shifted())
    register_method("my-method", half_of_the_pairs)

A task that evaluates posteriors at a few observations derives from `PosteriorTask`.
"""

from sbi_multilevel_benchmarks import methods, tasks
from sbi_multilevel_benchmarks.fit import Fit, Method, evaluated
from sbi_multilevel_benchmarks.posterior_task import PosteriorTask
from sbi_multilevel_benchmarks.registry import (
    get_task,
    register_method,
    register_task,
)
from sbi_multilevel_benchmarks.task import BenchmarkTask

__all__ = [
    "BenchmarkTask",
    "Fit",
    "Method",
    "PosteriorTask",
    "get_task",
    "evaluated",
    "register_method",
    "register_task",
]
