"""Files of unknown origin: read without running code, or an error with their name."""

import json
import zipfile

import numpy as np
import pytest
import torch

from sbi_multilevel import MFNPE, MultilevelSimulations
from sbi_multilevel.allocation.measuring import ExtraRuns
from sbi_multilevel.allocation.step_log import SpendingLog, SpendingStep
from sbi_multilevel.simulate import GrowingSimulations
from sbi_multilevel.simulation.filling import RunOptions
from tests.foreign_files import contents, raises_for_another_file, reads_or_raises
from tests.linear_gaussian import SIMULATORS, SilentTracker, noise, prior
from tests.mutations import Touch, odd_value
from tests.test_mftsnpe import FINE, RUN, make
from tests.test_simulations import make_level
from tests.test_trainers import FEW
from tests.test_transfer import SIMS
from tests.test_transfer import make as make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")


def simulations(path):
    MultilevelSimulations((make_level(0), make_level(1, 7)), (1.0, 2.0)).save(path)


def state(path):
    inference = make()
    inference.run(FINE, 20, 1, checkpoint=path, **RUN)
    inference.propose(3)
    inference.save(path)


def weights(path):
    options = {"tracker": SilentTracker(), "show_progress_bars": False}
    trainer = MFNPE(prior(), "mdn", **options)
    trainer.append_lowfidelity_simulations(SIMS[0].theta, SIMS[0].x)
    torch.save(trainer.train(**FEW).state_dict(), path)


KEY = {"budget": 10.0}


def steps(path):
    SpendingLog(path, KEY).write(0, SpendingStep((10, 2), (1.0, 5.0), (0.5, 0.1)))


# functions that write and read each kind of file
FILES = {
    "simulations": (simulations, MultilevelSimulations.load),
    "state": (state, lambda path: make().load(path)),
    "weights": (weights, lambda path: make_trainer(low=False).warm_start(path)),
    "steps": (steps, lambda path: SpendingLog(path, KEY).step(0)),
}
every_file = pytest.mark.parametrize("kind", FILES)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Contents of a file of each kind."""
    return contents(FILES, tmp_path_factory)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "foreign.file"


@every_file
def test_valid_files_are_read(kind, sound, path):
    path.write_bytes(sound[kind])
    FILES[kind][1](path)


@every_file
@pytest.mark.parametrize("which", range(8))
def test_other_files_raise_with_their_name_and_are_not_changed(kind, which, path):
    raises_for_another_file(FILES[kind][1], path, which)


@every_file
@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_are_read_or_raise(kind, seed, sound, path):
    reads_or_raises(FILES[kind][1], path, sound[kind], seed)


@pytest.mark.parametrize("kind", ("simulations", "state", "weights"))
def test_a_missing_file_raises_file_not_found(kind, path):
    with pytest.raises(FileNotFoundError, match="foreign.file"):
        FILES[kind][1](path)


# ------------------------------------------------------------- archives


def array(name, value):
    return lambda arrays: {**arrays, name: np.asarray(value)}


def without(name):
    return lambda arrays: {k: v for k, v in arrays.items() if k != name}


def objects(arrays):
    return {**arrays, "x_0": np.array([Touch("code_ran")], dtype=object)}


@pytest.mark.parametrize(
    "change, named",
    [
        (objects, "Object arrays cannot be loaded"),
        (without("num_levels"), "lacks num_levels, and has"),
        (without("x_1"), "lacks x_1, and has"),
        (array("num_levels", -1), "num_levels is -1"),
        (array("num_levels", 10**12), "lacks theta_2"),
        (array("num_levels", 2.0), r"num_levels is 2\.0"),
        (array("num_levels", [2, 2]), r"num_levels is \[2, 2\]"),
        (array("x_0", ["a", "b"]), "x_0 has the type <U1, and must hold numbers"),
        (array("x_0", np.zeros(3, "f4,f4")), "x_0 is no array of numbers"),
        (array("x_0", np.zeros((30, 3))), "x of level 0 must be a float32"),
        (array("x_0", np.zeros((29, 3), "f4")), "level 0 differ in length.*29"),
        (array("x_1", np.zeros((7, 4), "f4")), r"x of level 1 has shape \(7, 4\)"),
        (array("weights_0", np.zeros(30, "f4")), "weights of level 0 must be"),
        (array("costs", ["a"]), "costs has the type <U1"),
        (array("costs", [1.0]), "costs must hold one number >= 0"),
    ],
)
def test_archives_with_other_arrays_raise(change, named, sound, path):
    path.write_bytes(sound["simulations"])
    arrays = change(dict(np.load(path)))
    with path.open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(ValueError, match=f"foreign.file.*{named}.*Pass a file written"):
        MultilevelSimulations.load(path)
    assert not path.with_name("code_ran").exists()


def test_an_array_that_is_too_large_is_not_allocated(sound, path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**15, 3)}
    path.write_bytes(sound["simulations"])
    arrays = dict(np.load(path))
    with path.open("wb") as file:
        np.savez(file, **without("x_0")(arrays))
    with zipfile.ZipFile(path, "a") as archive, archive.open("x_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(ValueError, match="foreign.file.*Unable to allocate"):
        MultilevelSimulations.load(path)


def test_numbers_of_the_other_byte_order_are_read(sound, path):
    path.write_bytes(sound["simulations"])
    arrays = dict(np.load(path))
    swapped = {k: v.astype(v.dtype.newbyteorder("S")) for k, v in arrays.items()}
    with path.open("wb") as file:
        np.savez(file, **swapped)
    assert torch.equal(MultilevelSimulations.load(path)[0].x, make_level(0).x)


@pytest.mark.parametrize(
    "change, named",
    [
        (without("digest"), "lacks digest"),
        (array("below_2_0", np.zeros((9, 2), "f4")), "below_2_0 is .*not float32 with"),
        (array("below_2_0", np.zeros(30)), "below_2_0 is torch.float64"),
        (array("below_9_0", np.zeros((9, 2), "f4")), "IndexError"),
        (array("other", np.zeros((9, 2), "f4")), "IndexError"),
        (array("below_2_0", ["a"]), "must hold numbers"),
    ],
)
def test_invalid_extra_runs_of_a_pilot_raise(change, named, tmp_path):
    pytest.importorskip("zarr")
    store, file = tmp_path / "run.zarr", tmp_path / "run.zarr.pilot.npz"
    options = RunOptions((1_000,) * 3, show_progress_bars=False)
    growing = GrowingSimulations(SIMULATORS, prior(), noise, 0, store, options)
    pilot = (growing, growing.simulate((20, 20, 30)), (20, 20, 30))
    ExtraRuns(*pilot).below()
    np.savez(file, **change(dict(np.load(file))))
    with pytest.raises(ValueError, match=f"pilot.npz.*{named}.*Delete the file"):
        ExtraRuns(*pilot)


# ------------------------------------------------------------- states


def at(*place, value):
    def change(tree):
        if len(place) == 1:
            return {**tree, place[0]: value}
        return {**tree, place[0]: at(*place[1:], value=value)(tree[place[0]])}

    return change


def first_row(**changes):
    return lambda tree: {**tree, "rows": [{**tree["rows"][0], **changes}]}


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda tree: [1, 2], "it holds a list"),
        (lambda tree: {}, "settings is missing"),
        (lambda tree: {**tree, "more": Touch("code_ran")}, "more than tensors"),
        (at("members", value=3), "members is missing, or a int"),
        (at("members", value=[]), "it has 0 networks"),
        (at("members", value=[{"weight": torch.zeros(2)}]), "not those of this netw"),
        (at("members", value=[{"weight": "a"}]), "'weight' is no tensor"),
        (at("counters", value=(0, -1, 2)), r"counters are \(0, -1, 2\)"),
        (at("counters", value=(0, 2, 2)), "summary has num_simulations"),
        (at("summary", value={}), "summary has num_simulations None"),
        (at("summary", "num_active", value=["a"]), "summary has num_active"),
        (at("low_weights", value=torch.ones(7)), r"low_weights have the shape \(7,\)"),
        (at("low_sums", value=(1.0, "a")), "low_sums are"),
        (first_row(theta=torch.zeros(20, 3)), r"theta has shape \(3,\) per"),
        (first_row(x=torch.zeros(20, 5)), "x has shape"),
        (first_row(x=torch.zeros(9, 2)), "differ in length"),
        (first_row(x=torch.zeros(20, 2).double()), "x of level 1 must be a float32"),
        (first_row(level=2), "simulations of level 2, not 1"),
        (first_row(more=1), "more"),
        (at("pending", "theta", value=torch.zeros(3, 5)), r"shape \(5,\) per"),
        (at("pending", "weights", value=torch.zeros(9)), "differ in length"),
        (at("pending", "active", value=torch.zeros(3)), "active is not a boolean"),
        (at("pending", "acceptance", value="a"), "acceptance is no number"),
        (at("pending", "outputs", value={7: (torch.zeros(2),)}), "not proposed"),
        (
            at("pending", "outputs", value={0: (torch.zeros(2),), 1: ()}),
            "outputs differ in shape",
        ),
        (at("pending", "failures", value={0: 7}), "failures are no text"),
    ],
)
def test_states_with_other_content_raise(change, named, sound, path):
    path.write_bytes(sound["state"])
    torch.save(change(torch.load(path, weights_only=True)), path)
    inference = make()
    with pytest.raises(ValueError, match=f"foreign.file(?s:.*){named}(?s:.*)Pass a fi"):
        inference.load(path)
    with pytest.raises(RuntimeError, match="Nothing was trained"):  # as it was before
        inference.build_posterior()
    assert not path.with_name("code_ran").exists()


@pytest.mark.parametrize("seed", range(40))
def test_random_states_are_read_or_raise(seed, sound, path):
    path.write_bytes(sound["state"])
    torch.save(odd_value(torch.load(path, weights_only=True), seed), path)
    try:
        make().load(path)
    except ValueError as error:
        assert "foreign.file" in str(error)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda weights: list(weights.values()), "it holds a list, no weights"),
        (lambda weights: {**weights, "x_mean": 1.0}, "'x_mean' is no tensor"),
        (at("x_std", value=torch.full((2,), torch.nan)), "'x_std' is no tensor"),
        (at("x_std", value=torch.zeros(3)), r"x_std have the shapes \(2,\) and \(3,\)"),
        (without("x_std"), r"x_std have the shapes \(2,\) and None"),
        (without("x_shift"), "are not those of this network"),
        (lambda weights: {**weights, "more": Touch("code_ran")}, "more than tensors"),
    ],
)
def test_weights_with_other_content_raise(change, named, sound, path):
    path.write_bytes(sound["weights"])
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(ValueError, match=f"{named}(?s:.*)(Pass|Pre-train)"):
        make_trainer(low=False).warm_start(path).train(**FEW)
    assert not path.with_name("code_ran").exists()


# ------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    "steps",
    [
        [{}],
        [{"num_simulations": [1, 2], "costs": [1.0], "variances": [1.0, 2.0]}],
        [{"num_simulations": [-1], "costs": [1.0], "variances": [1.0]}],
        [{"num_simulations": ["9"], "costs": [1.0], "variances": [1.0]}],
        [{"num_simulations": [1], "costs": "1", "variances": [1.0]}],
        7,
    ],
)
def test_invalid_steps_of_a_budget_raise(steps, path):
    path.write_text(json.dumps({"key": KEY, "steps": steps}))
    with pytest.raises(ValueError, match="foreign.file.*Delete the file"):
        SpendingLog(path, KEY)
