"""Mistakes of users: they are detected, and errors name the remedy."""

import math
import warnings

import joblib
import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform

from sbi_multilevel import (
    SimulationStore,
    TooManyFailures,
    simulate_multilevel,
    vectorize_simulator,
)
from sbi_multilevel.diagnostics import check_pairing
from sbi_multilevel.simulation.arguments import per_level
from tests.two_levels import PRIOR, assert_same, coarse, fine, normal_noise
from tests.two_levels import simulate as run


def flat_noise(n, generator):
    return torch.randn(n, generator=generator)


def added(theta, noise):
    return theta + noise


def added_by_column(theta, noise):
    return theta + noise.unsqueeze(1)


def twice(theta, noise):
    return theta + 2 * noise


# ----------------------------------------------------------------- mixed simulations


@pytest.mark.parametrize("batch_size", (1_000, 50, 7, 2))
@pytest.mark.parametrize("noise", (flat_noise, None), ids=("flat", "seeds"))
def test_noise_that_is_broadcast_stops_the_run(noise, batch_size):
    with pytest.raises(ValueError, match="level 0 mixes the .*noise of shape .n,."):
        run((added, twice), n=(50, 20), noise=noise, simulation_batch_size=batch_size)
    if noise is None:
        with pytest.raises(ValueError, match="noise was not passed.*int64 seeds"):
            run((added, twice), noise=noise)


@pytest.mark.parametrize("number", (2, 3, 40))
def test_noise_that_is_broadcast_along_one_parameter_stops_the_run(number):
    """(n, 1) and (n,) are broadcast to (n, n) without an error."""
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="mixes the simulations"):
        run((added, twice), prior, n=(number, number), noise=flat_noise)


def test_workers_detect_mixed_simulations_and_do_not_store_them(tmp_path):
    path = tmp_path / "run.zarr"
    options = dict(noise=flat_noise, simulation_batch_size=10, store=path)
    text = "mixes the .*a batch of 10 simulations of level 0 failed with RuntimeError"
    threads = joblib.parallel_config(backend="threading")
    with threads, pytest.raises(ValueError, match=text):
        run((added, twice), n=(20, 20), num_workers=2, **options)
    store = SimulationStore.open(path)
    assert store.summary().startswith("level 0: 20 pending, 0 ok")


def test_noise_of_shape_n_is_allowed_if_simulations_stay_separate():
    def other(theta, noise):
        return theta + 1.5 * noise.unsqueeze(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = run((added_by_column, other), noise=flat_noise)
        two = run((added_by_column, other), noise=flat_noise, simulation_batch_size=2)
    assert_same(one, two)


def test_single_simulations_are_correct_but_there_is_a_warning():
    """With five parameters, batches of all sizes except 1 and 5 fail."""
    prior = BoxUniform(-torch.ones(5), torch.ones(5))
    match = "a batch of 4 simulations of level . failed"
    with pytest.warns(UserWarning, match=match) as caught:
        sims = run(
            (added, twice), prior, (8, 8), noise=flat_noise, simulation_batch_size=4
        )
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2  # one per level
    assert all("worked in smaller batches" in text for text in texts)
    pairs = sims[1]
    noise = (pairs.x - pairs.theta) / 2
    assert torch.allclose(noise, noise[:, :1].expand(-1, 5), atol=1e-6)


def fails_in_large_batches(error):
    def simulate(theta, noise):
        if len(theta) > 3:
            raise error
        return fine(theta, noise)

    return simulate


def test_parts_of_a_failed_batch_are_checked_for_any_shape():
    def centred(theta, noise):
        if len(theta) > 3:
            raise KeyError("a")
        return (theta + noise - noise.mean(dim=0))[:, :1]

    def draw(n, generator):
        return torch.randn(n, 2, generator=generator)

    with pytest.raises(ValueError, match="level 0 mixes the simulations.*KeyError"):
        run((centred, centred), noise=draw)


def test_a_batch_that_runs_out_of_memory_is_halved_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for error in (MemoryError(), RuntimeError("CUDA out of memory.")):
            assert_same(run((coarse, fails_in_large_batches(error))), run())
    with pytest.warns(UserWarning, match="a batch of 20 simulations of level 1 failed"):
        assert_same(run((coarse, fails_in_large_batches(KeyError("a")))), run())


def test_one_failed_simulation_explains_a_failed_batch():
    def raising(theta, noise):
        if (theta[:, 0] == bad).any():
            raise ArithmeticError("no convergence")
        return fine(theta, noise)

    bad = float(run()[1].theta[3, 0])
    with pytest.warns(UserWarning) as caught:
        sims = run((coarse, raising))
    assert len(sims[1]) == 19 and len(caught) == 1
    assert "1 of 20 simulations of level 1 failed" in str(caught[0].message)


def test_a_simulator_with_its_own_randomness_does_not_stop_a_run():
    def own(theta, noise):
        if len(theta) > 3:
            raise KeyError("a")
        return theta + torch.randn(len(theta), 2)

    with pytest.warns(UserWarning, match="worked in smaller batches"):
        assert len(run((coarse, own))[1]) == 20


def test_one_simulation_per_level_is_repeated_alone():
    sizes = []

    def square(theta, noise):
        sizes.append(len(theta))
        return coarse(theta, noise)

    run((square, fine), n=(8, 2), simulation_batch_size=2)
    # level 0: one repeated after the first batch; level 1: the same at the lower level
    assert sizes == [2, 1, 2, 2, 2] + [2, 1]


def test_check_pairing_distinguishes_mixed_simulations_from_own_randomness():
    def centred(theta, noise):
        return fine(theta, noise) - noise[:, :2].mean(dim=0)

    def own(theta, noise):
        return coarse(theta, noise) + torch.randn(len(theta), 2)

    def verdict(*simulators):
        (text,) = check_pairing(simulators, PRIOR, normal_noise).verdicts
        return text

    mixed = verdict(coarse, centred)
    assert "dependence on the batch: the output of level 1 (" in mixed
    assert "internal randomness" not in mixed
    text = verdict(own, fine)
    assert "internal randomness: level 0" in text and "batch" not in text
    text = verdict(own, centred)
    assert "internal randomness: level 0" in text and "output of level 1 (" in text
    assert "batch" not in verdict(coarse, fine)
    with pytest.raises(ValueError, match="mixes the simulations"):
        check_pairing([added, twice], PRIOR, flat_noise)


# ------------------------------------------------------ refused before simulating


def never(theta, noise):
    raise AssertionError("was called")


NOISES = {
    "length two": (lambda n, generator: torch.randn(2), r"shape \(2,\), but must"),
    "no dimension": (lambda n, generator: torch.randn(()), r"shape \(\), but must"),
    "a number": (lambda n, generator: 0.3, "float, but must"),
    "one of a tuple": (
        lambda n, generator: (torch.randn(n, 2), torch.randn(3)),
        r"shape \(1, 2\) and shape \(3,\)",
    ),
    "no function": (torch.randn(5), r" is tensor\(.*must be a function"),
    "one argument": (lambda n: torch.randn(n), r"takes \(n\), but is called with"),
}


@pytest.mark.parametrize("case", NOISES)
@pytest.mark.parametrize("is_stored", (False, True))
def test_bad_noise_raises_with_its_name(case, is_stored, tmp_path):
    noise, text = NOISES[case]
    path = tmp_path / "run.zarr"
    with pytest.raises(ValueError, match=f"^noise.*{text}"):
        run((never, never), noise=noise, store=path if is_stored else None)
    assert not path.exists()
    with pytest.raises(ValueError, match="^noise"):
        SimulationStore.create(path, PRIOR, (3, 3), noise=noise)
    assert not path.exists()


def test_noise_may_be_an_array():
    def arrays(n, generator):
        return normal_noise(n, generator).numpy()

    assert_same(run(noise=arrays), run())


@pytest.mark.parametrize(
    "simulators, text",
    [
        ((coarse, lambda theta: theta), r"simulators\[1\], .*takes \(theta\), but is "),
        ((3, coarse), r"simulators\[0\] is 3, but must be a function of .theta, noise"),
        (coarse, "simulators is coarse, but must be a list"),
    ],
)
def test_bad_simulators_raise_with_their_name(simulators, text, tmp_path):
    for options in ({}, {"store": tmp_path / "run.zarr"}):
        with pytest.raises(ValueError, match=text):
            run(simulators, **options)
    assert not (tmp_path / "run.zarr").exists()
    with pytest.raises(ValueError, match=text):
        check_pairing(simulators, PRIOR, normal_noise)


def test_simulators_of_one_theta_take_a_seed():
    with pytest.raises(ValueError, match=r"takes \(theta\), but is .*\(theta, seed\)"):
        vectorize_simulator(lambda theta: theta)


def test_simulators_without_a_known_signature_are_accepted():
    assert vectorize_simulator(math.hypot)(torch.ones(2, 1), torch.zeros(2)).shape == (
        2,
        1,
    )
    run((np.minimum, np.maximum), noise=lambda n, g: torch.randn(n, 2, generator=g))


@pytest.mark.parametrize(
    "options, text",
    [
        (dict(num_simulations=100), "num_simulations is 100, .*e.g. .1_000, 100."),
        (dict(costs=3), "costs must hold one number for each of the 2 .* but is 3"),
        (dict(simulation_batch_size=2.5), "simulation_batch_size .* but is 2.5"),
    ],
)
def test_bad_numbers_raise_with_their_name(options, text, tmp_path):
    options = {"num_simulations": (9, 9), **options}
    for store in (None, tmp_path / "run.zarr"):
        with pytest.raises(ValueError, match=text):
            simulate_multilevel([never, never], PRIOR, store=store, **options)
    assert not (tmp_path / "run.zarr").exists()
    assert per_level(np.int64(3), 2) == (3, 3) and per_level([1, 2], 2) == (1, 2)


# ------------------------------------------------------------- messages of failures


def test_a_failure_names_the_line_in_the_users_code():
    def helper(theta):
        return torch.linalg.cholesky(torch.zeros(2, 2) - 1) + theta  # fails in torch

    def simulate(theta, noise):
        return helper(theta)

    line = helper.__code__.co_firstlineno + 1
    with pytest.raises(TooManyFailures, match=rf"\(helper, line {line}\)"):
        run((simulate, simulate))


def test_a_seed_that_is_too_large_names_the_line_in_the_users_code():
    def simulate(theta, seed):
        np.random.seed(seed)
        return theta

    with pytest.raises(TooManyFailures, match=r"2\*\*32 - 1 \(simulate, line"):
        run((vectorize_simulator(simulate),) * 2, noise=None)


def test_scalar_outputs_need_a_feature_dimension():
    def flat(theta, noise):
        return theta[:, 0]

    with pytest.raises(TooManyFailures, match=r"shape \(n,\).*Return shape \(n, 1\)"):
        run((flat, flat))
    with pytest.raises(TooManyFailures) as caught:
        run((flat, flat))
    assert ", line" not in str(caught.value)  # it would be a line of this package
    with pytest.raises(TooManyFailures, match=r"shape \(2,\) for n = 1 values of"):
        run((lambda theta, noise: theta[0],) * 2)


class Frame:
    """Numbers that NumPy reads, and torch does not, as a table of pandas."""

    def __init__(self, values):
        self._values = values

    def __len__(self):
        return len(self._values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype=dtype)


@pytest.mark.parametrize("convert", (Frame, lambda x: x.astype(">f4")))
def test_outputs_that_numpy_reads_are_outputs(convert):
    def converted(theta, noise):
        return convert(coarse(theta, noise).numpy())

    assert_same(run((converted, fine)), run((coarse, fine)))


@pytest.mark.parametrize(
    "output, text",
    [
        (None, "x is a NoneType, which is no array of numbers"),
        ("text", "x is a str, which is no array of numbers"),
        (torch.zeros(1, 2, dtype=torch.complex64), "x has complex numbers"),
        (np.zeros((1, 2), dtype=complex), "x has complex numbers"),
    ],
)
def test_outputs_that_are_no_real_numbers_are_named(output, text):
    with pytest.raises(TooManyFailures, match=text):
        run((lambda theta, noise: output,) * 2)


# ------------------------------------------------------------------------- reprs


def test_the_repr_is_short():
    text = repr(run(costs=(1, 10)))
    assert text == (
        "MultilevelSimulations(costs a run: 1, 10,\n"
        "  LevelSimulations(level 0: 40 simulations, not paired, theta (2,), x (2,)),\n"
        "  LevelSimulations(level 1: 20 simulations, paired, theta (2,), x (2,)))"
    )
