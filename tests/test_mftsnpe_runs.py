"""Sequential rounds that are interrupted, pickled, resumed, or have failures."""

import pickle
import subprocess
import sys
import textwrap
from copy import deepcopy

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

from sbi_multilevel import Truncation
from sbi_multilevel.methods.sequential import fine_tuning_state
from tests.test_mftsnpe import (
    FINE,
    RUN,
    X_O,
    Killed,
    killing,
    make,
    networks,
    settings,
    simulate,
)

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")


@pytest.fixture(scope="module")
def run_once():
    """What a run by a function ends with, done once per function and settings."""
    done = {}

    def get(run, name):
        if name not in done:
            done[name] = run()
        return done[name]

    return get


@pytest.fixture
def unbroken(options, run_once):
    """A finished run of two rounds, for tests that do not change it."""

    def run():
        inference = make(**options)
        inference.run(FINE, 40, 2, **RUN)
        return inference

    return run_once(run, "active" if options else "single")


# ------------------------------------------------------------- resumption


@settings
@pytest.mark.parametrize("when", (1, 7, 20, 21, 33))
def test_a_run_killed_while_simulating_is_resumed(options, when, unbroken, tmp_path):
    path = tmp_path / "deep" / "run.pt"
    with pytest.raises(Killed):
        make(**options).run(killing(FINE, when), 40, 2, checkpoint=path, **RUN)
    again, calls = make(**options), []

    def counting(theta, noise):
        calls.append(len(theta))
        return FINE(theta, noise)

    again.run(counting, 40, 2, checkpoint=path, **RUN)
    assert sum(calls) == 40 - (when - 1)  # nothing is simulated twice
    assert torch.equal(networks(again), networks(unbroken))
    for a, b in zip(again._state.parts, unbroken._state.parts):
        assert torch.equal(a.x, b.x) and torch.equal(a.theta, b.theta)


@settings
@pytest.mark.parametrize("when", (1, 2))
def test_a_run_interrupted_while_training_is_resumed(
    options, when, unbroken, tmp_path, monkeypatch
):
    path = tmp_path / "run.pt"
    train, calls = fine_tuning_state.train_members, []

    def killed(*args):
        calls.append(1)
        if len(calls) == when:
            raise Killed
        return train(*args)

    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning_state, "train_members", killed)
        with pytest.raises(Killed):
            make(**options).run(FINE, 40, 2, checkpoint=path, **RUN)
    again = make(**options)
    again.run(FINE, 40, 2, checkpoint=path, **RUN)
    assert torch.equal(networks(again), networks(unbroken))
    finished = make(**options)
    finished.run(killing(FINE, 1), 40, 2, checkpoint=path, **RUN)  # nothing left to do
    assert torch.equal(networks(finished), networks(unbroken))


def test_the_run_of_a_process_that_died_is_resumed(tmp_path):
    script = textwrap.dedent("""
        import os, sys
        from tests.test_mftsnpe import FINE, RUN, make
        calls = []
        def dying(theta, noise):
            calls.append(1)
            if len(calls) == int(sys.argv[1]):
                os._exit(9)
            return FINE(theta, noise)
        make().run(dying, 40, 2, checkpoint=sys.argv[2], **RUN)
    """)
    path = tmp_path / "run.pt"
    command = [sys.executable, "-c", script, "26", str(path)]
    root = __file__.rsplit("tests", 1)[0]
    assert subprocess.run(command, cwd=root).returncode == 9
    unbroken, again = make(), make()
    unbroken.run(FINE, 40, 2, **RUN)
    again.run(FINE, 40, 2, checkpoint=path, **RUN)
    a, b = networks(again), networks(unbroken)
    assert torch.allclose(a, b, atol=1e-5)  # the other process may use other kernels


@settings
@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("density_estimator", ("mdn", "builder"))
def test_pickling_between_steps_changes_nothing(
    options, step, density_estimator, run_once
):
    name = density_estimator, "active" if options else "single"
    if density_estimator == "builder":
        options = {**options, "density_estimator": posterior_nn("mdn")}

    def rounds(pickled_at):
        inference = make(**options)
        for round_ in range(2):
            for index in range(2):
                if (round_, index) == divmod(pickled_at, 2):
                    inference = pickle.loads(pickle.dumps(inference))
                if index == 0:
                    theta = inference.propose(20)
                    torch.manual_seed(round_)
                    inference.append_simulations(theta, simulate(theta))
                else:
                    inference.train()
        return networks(inference)

    assert torch.equal(rounds(step), run_once(lambda: rounds(99), name))


def test_a_copy_has_the_attributes_of_a_subclass():
    inference = make()
    inference.label = "of a subclass"
    for copy in (deepcopy(inference), pickle.loads(pickle.dumps(inference))):
        assert copy.label == inference.label
        assert len(copy._pretraining._theta_roundwise) == 1


@pytest.mark.parametrize("batch_size, num_workers", ((1, 1), (7, 1), (20, 1), (3, 2)))
def test_batches_and_workers_change_nothing(batch_size, num_workers):
    inference, reference = make(), make()
    inference.run(
        FINE, 20, 1, simulation_batch_size=batch_size, num_workers=num_workers, **RUN
    )
    reference.run(FINE, 20, 1, **RUN)
    (one,), (two,) = inference._state.parts, reference._state.parts
    assert torch.allclose(one.x, two.x, atol=1e-6)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    make().run(FINE, 20, 1, checkpoint=path, **RUN)
    for other, named in (
        (make(seed=2), "seed was 1, is 2"),
        (make(x_o=X_O + 1), "x_o was"),
        (make(num_members=2), "num_members was 1, is 2"),
        (make(train_options={}), "train_options"),
    ):
        with pytest.raises(ValueError, match=named):
            other.load(path)
    with pytest.raises(ValueError, match="are not those of this network"):
        make(density_estimator="maf").load(path)
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(make()))
    with pytest.raises(ValueError, match="more than tensors"):
        make().load(tmp_path / "bad.pt")


# ------------------------------------------------------------- failures


def failing(simulator, share, how):
    def run(theta, noise):
        x = simulator(theta, noise)
        bad = (theta.sum(dim=1) * 1e4).floor() % 100 < 100 * share
        if how == "raise" and bad.any():
            raise RuntimeError("did not converge")
        x[bad] = float(how) if how != "raise" else x[bad]
        return x

    return run


@pytest.mark.parametrize("batch_size", (1, 5))
@pytest.mark.parametrize("how", ("raise", "nan", "inf"))
def test_failed_simulations_are_replaced_and_counted(how, batch_size):
    inference = make()
    with pytest.warns(UserWarning, match="failed and were replaced"):
        inference.run(
            failing(FINE, 0.3, how), 40, 2, simulation_batch_size=batch_size, **RUN
        )
    assert inference.summary["num_simulations"] == [20, 20]
    assert sum(len(f) for f in inference.summary["failures"]) > 0
    text = "did not converge" if how == "raise" else "NaN or inf"
    assert text in inference.summary["failures"][0][0]


def test_too_many_failures_raise_an_error_and_lose_nothing(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(RuntimeError, match="max_resampling=4.*did not converge.*kept"):
        make().run(
            failing(FINE, 0.5, "raise"),
            20,
            1,
            max_resampling=4,
            checkpoint=path,
            **RUN,
        )
    with pytest.raises(RuntimeError, match="max_resampling=4"):
        make().run(failing(FINE, 1.1, "raise"), 20, 1, max_resampling=4, **RUN)
    again, calls = make(), []

    def fixed(theta, noise):
        calls.append(len(theta))
        return FINE(theta, noise)

    with pytest.warns(UserWarning, match="were replaced"):
        again.run(fixed, 20, 1, max_resampling=4, checkpoint=path, **RUN)
    assert 0 < sum(calls) < 20


@pytest.mark.filterwarnings("ignore:.*were replaced")
@pytest.mark.parametrize("when", (22, 27, 45))
def test_a_run_killed_while_replacing_failures_is_resumed(when, tmp_path):
    path, simulator = tmp_path / "run.pt", failing(FINE, 0.3, "nan")
    unbroken, again = make(), make()
    unbroken.run(simulator, 40, 2, **RUN)
    with pytest.raises(Killed):
        make().run(killing(simulator, when), 40, 2, checkpoint=path, **RUN)
    again.run(simulator, 40, 2, checkpoint=path, **RUN)
    assert torch.equal(networks(again), networks(unbroken))


@pytest.mark.filterwarnings("ignore:Dropped")
def test_a_region_that_accepts_nothing_is_an_error():
    narrow = BoxUniform(-1e4 * torch.ones(2), 1e4 * torch.ones(2))
    truncation = Truncation(num_samples=100, max_draws=20_000)
    inference = make(prior=narrow, low=False, truncation=truncation)
    theta = 0.001 * torch.randn(40, 2)
    inference.append_simulations(theta, simulate(theta)).train()
    posterior = inference.build_posterior()
    inside = posterior.sample((100,), show_progress_bars=False)
    if narrow.sample((20_000,)).abs().max(dim=1).values.min() < inside.abs().max():
        pytest.fail("the region is too wide for this test")
    with pytest.raises(RuntimeError, match="accepted 0 of 20000.*sir"):
        inference.propose(10)


def test_proposals_by_sampling_importance_resampling():
    inference = make(truncation=Truncation(num_samples=500, sample_with="sir"))
    theta = inference.propose(20)
    inference.append_simulations(theta, simulate(theta)).train()
    assert inference.propose(5).shape == (5, 2)
