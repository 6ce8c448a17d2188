"""The worked example of an external program, run here and elsewhere."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sbi_multilevel import SimulationStore, simulate_multilevel, vectorize_simulator

pytest.importorskip("zarr")
FOLDER = Path(__file__).parents[1] / "tutorials" / "external_program"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HERE, ELSEWHERE = script("run_here"), script("run_elsewhere")


def test_rows_run_elsewhere_are_those_run_here(tmp_path):
    path, jobs = tmp_path / "run.zarr", tmp_path / "jobs"
    ELSEWHERE.write(path, jobs, (3, 2))
    inputs = sorted(jobs.glob("*.input"))
    assert len(inputs) == 3 + 2 * 2
    for file in inputs[:4]:  # a part of them has come back
        run_program(file)
    assert "pending" in ELSEWHERE.read(path, jobs).summary()
    for file in reversed(inputs):
        run_program(file)
    elsewhere = ELSEWHERE.read(path, jobs).to_simulations()
    simulators = [vectorize_simulator(HERE.Pendulum(steps)) for steps in HERE.STEPS]
    here = simulate_multilevel(simulators, HERE.PRIOR, (3, 2), show_progress_bars=False)
    for a, b in zip(elsewhere, here):
        assert torch.equal(a.theta, b.theta) and torch.allclose(a.x, b.x)


def run_program(file):
    command = [
        sys.executable,
        FOLDER / "pendulum.py",
        file,
        file.with_suffix(".output"),
    ]
    subprocess.run(command, check=True)


def test_what_the_program_said_is_kept(tmp_path):
    class Broken(HERE.Pendulum):
        def __call__(self, theta, seed):
            return super().__call__(-theta if theta[0] > 1.7 else theta, seed)

    path = tmp_path / "run.zarr"
    with pytest.warns(UserWarning, match="length must be positive"):
        simulate_multilevel(
            [vectorize_simulator(Broken(50))],
            HERE.PRIOR,
            (20,),
            simulation_batch_size=4,
            max_failure_share=1.0,
            store=path,
            show_progress_bars=False,
        )
    failures = SimulationStore.open(path).failures()
    assert failures and all("length must be positive" in f.error for f in failures)


@pytest.mark.slow
def test_the_example_infers_the_truth(tmp_path):
    posterior = HERE.main(tmp_path / "run.zarr")
    x_o = torch.tensor([HERE.Pendulum(2_000)(torch.tensor([1.0, 0.2]), seed=7)])
    samples = posterior.sample((1_000,), x=x_o, show_progress_bars=False)
    distance = (samples.mean(dim=0) - torch.tensor([1.0, 0.2])).abs()
    assert (distance < 4 * samples.std(dim=0)).all()
