"""The same program, run elsewhere, for example on a cluster.

    python run_elsewhere.py write     # one input file for each pending run
    ... run the program on these files, e.g. as a job array: sbatch --array=0-39 job.sh
    python run_elsewhere.py read      # records the outputs that exist; can be repeated

Simulations are identified by their ids, so outputs can be recorded in any order, and
repeatedly.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sbi.utils import BoxUniform

from sbi_multilevel import SimulationStore

STEPS = (50, 2_000)  # of level 0 and level 1
PRIOR = BoxUniform(torch.tensor([0.5, 0.0]), torch.tensor([2.0, 0.5]))


def write(path, jobs, num_simulations=(400, 40)):
    """Plan the simulations, and write the inputs of those that are pending."""
    jobs.mkdir(exist_ok=True)
    store = SimulationStore.create(path, PRIOR, num_simulations)
    for level in (0, 1):
        pending = store.pending(level)
        for id_, theta, seed in zip(
            pending.ids, pending.theta.tolist(), pending.noise.tolist()
        ):
            # level 1 has pairs: the same theta and seed at both step sizes
            for side in range(max(level - 1, 0), level + 1):
                text = f"{theta[0]} {theta[1]} {seed} {STEPS[side]}"
                (jobs / f"{id_}.level_{side}.input").write_text(text)


def read(path, jobs):
    """Record the outputs that exist; returns the store."""
    store = SimulationStore.open(path)
    for level in (0, 1):
        ids = [
            int(id_)
            for id_ in store.pending(level).ids
            if all(
                (jobs / f"{id_}.level_{side}.output").exists()
                for side in range(max(level - 1, 0), level + 1)
            )
        ]
        if not ids:
            continue

        def outputs(side, ids=ids):
            files = [jobs / f"{id_}.level_{side}.output" for id_ in ids]
            return np.stack([np.loadtxt(file, ndmin=1) for file in files])

        store.record(ids, outputs(level), x_coarse=outputs(0) if level else None)
    print(store.summary())
    return store


if __name__ == "__main__":
    path, jobs = Path("pendulum.zarr"), Path("pendulum_jobs")
    {"write": write, "read": read}[sys.argv[1]](path, jobs)
