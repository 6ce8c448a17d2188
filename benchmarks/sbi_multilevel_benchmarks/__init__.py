r"""Tasks, methods and metrics of the benchmark, and the command that runs them.

`python -m sbi_multilevel_benchmarks TASK [TASK ...] --methods ... --rows ... --out FILE`
trains each method on each number of rows with each seed, and adds a line to the file as
soon as one is done; the same command again runs what the file lacks. Every method is
given the same simulations, and evaluated at the same test points.
`python -m sbi_multilevel_benchmarks report FILE [FILE ...] --out FOLDER` draws them.

Adding a task or a method
-------------------------

Write one file, and name it on the command line:
`python -m sbi_multilevel_benchmarks my-task --methods high my-method --plugin my.py`.

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
        num_simulations = (1_000, 50)  # of each level, unless --rows says otherwise
        costs = (1.0, 20.0)
        prior = BoxUniform(torch.zeros(2), torch.ones(2))
        simulators = (  # of theta and the noise of its rows, the cheapest first
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
        rows = simulations[-1]
        half = len(rows) // 2
        trainer = NPE(task.prior, density_estimator=task.build_network())
        trainer.append_simulations(rows.theta[:half], rows.x[:half])
        estimator = trainer.train()
        epochs = trainer.summary["epochs_trained"][-1]
        # runs of the simulator of each level, which make its cost
        return Fit(evaluated(task, [estimator]), rows.x, epochs, runs=(0, half))

    register_task("my-task", lambda data: Shifted())
    register_method("my-method", half_of_the_pairs)

A task whose estimates are evaluated as posteriors, at a few observations, derives from
`PosteriorTask`. What is built in is registered by the same two functions, tasks at the
end of their modules (imported in `tasks/__init__.py`), methods in `methods.py`.
"""

from sbi_multilevel_benchmarks.fitted import Fit, Method, evaluated
from sbi_multilevel_benchmarks.registry import register_method, register_task
from sbi_multilevel_benchmarks.tasks import BenchmarkTask, PosteriorTask, get_task

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
