"""The example of an external program, run from Python and outside of it."""

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


def test_external_runs_equal_internal_runs(tmp_path):
    path, jobs = tmp_path / "run.zarr", tmp_path / "jobs"
    ELSEWHERE.write(path, jobs, (3, 2))
    inputs = sorted(jobs.glob("*.input"))
    assert len(inputs) == 3 + 2 * 2
    for file in inputs[:4]:  # some of the outputs exist
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


def test_the_error_message_of_the_program_is_stored(tmp_path):
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
def test_the_example_recovers_the_true_theta(tmp_path):
    posterior = HERE.main(tmp_path / "run.zarr")
    x_o = torch.tensor([HERE.Pendulum(2_000)(torch.tensor([1.0, 0.2]), seed=7)])
    samples = posterior.sample((1_000,), x=x_o, show_progress_bars=False)
    distance = (samples.mean(dim=0) - torch.tensor([1.0, 0.2])).abs()
    assert (distance < 4 * samples.std(dim=0)).all()
