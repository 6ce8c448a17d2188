"""An external program as simulator, run on this machine: `python run_here.py`.

The program reads a file and writes one. If a run fails or hangs, its status and the
error message of the program are recorded. All other simulations are kept, and the same
command resumes an interrupted run.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from sbi.utils import BoxUniform

from sbi_multilevel import HybridNPE, simulate_multilevel, vectorize_simulator

PROGRAM = Path(__file__).with_name("pendulum.py")
STEPS = (50, 2_000)  # of level 0 and level 1
PRIOR = BoxUniform(torch.tensor([0.5, 0.0]), torch.tensor([2.0, 0.5]))


class Pendulum:
    """The program with a number of steps: a simulator of one theta and one seed."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, theta, seed):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "input"), Path(folder, "output")
            length, friction = theta.tolist()
            source.write_text(f"{length} {friction} {seed} {self.steps}")
            run = subprocess.run(
                [sys.executable, PROGRAM, source, target],
                capture_output=True,
                text=True,
            )
            if run.returncode != 0:  # the error message is recorded
                raise RuntimeError(run.stderr.strip())
            return [float(line) for line in target.read_text().split()]


def main(store, num_simulations=(400, 40)):
    simulations = simulate_multilevel(
        [vectorize_simulator(Pendulum(steps)) for steps in STEPS],
        PRIOR,
        num_simulations,
        simulation_batch_size=(20, 1),  # 20 of level 0 in one call
        num_workers=2,
        timeout=60,
        store=store,
    )
    inference = HybridNPE(PRIOR).append_multilevel_simulations(simulations)
    inference.train()
    return inference.build_posterior()


if __name__ == "__main__":
    posterior = main("pendulum.zarr")
    x_o = torch.tensor([Pendulum(STEPS[1])(torch.tensor([1.0, 0.2]), seed=7)])
    print(
        posterior.sample((1_000,), x=x_o).mean(dim=0), "for true parameters (1.0, 0.2)"
    )
