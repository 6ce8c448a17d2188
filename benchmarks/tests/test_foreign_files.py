"""Files of unknown origin: read without running code, or an error with their name."""

import json

import numpy as np
import pytest
import torch

from sbi_multilevel_benchmarks.journal import Journal, read_records
from sbi_multilevel_benchmarks.tasks.camels import Camels
from sbi_multilevel_benchmarks.tasks.ou_transfer import OUPublished
from tests.foreign_files import contents, raises_for_another_file, reads_or_raises

pytestmark = pytest.mark.filterwarnings("ignore")


def outputs(seed):
    return torch.randn(30, 3, generator=torch.Generator().manual_seed(seed))


def spectra(path):
    arrays = {"theta": outputs(0)[:, :2], "x_low": outputs(1), "x_high": outputs(2)}
    np.savez(path, theta_names=np.array(["Omega_m", "sigma_8"]), **arrays)


def published(path):
    names = ("x_o", "theta_o", "posterior_samples", "lf9_theta", "lf9_x")
    np.savez(path, **{name: outputs(0) for name in names})


def benchmark_record(seed):
    return {
        **dict(task="middle", method="high", num_simulations=[100, 10], seed=seed),
        **dict(metric="gap", metrics={"gap": {"mean": 1.0, "median": 0.5}}),
        **dict(runs=[0, 10], cost=100.0, seconds=1.0, epochs=7),
        **dict(command="python -m x", python="3.10", versions={"sbi": "0.27"}),
    }


def journal(path):
    lines = (json.dumps(benchmark_record(seed)) for seed in range(3))
    path.write_text("\n".join(lines) + "\n")


# functions that write and read each kind of file
FILES = {
    "spectra": (spectra, Camels),
    "published": (published, OUPublished),
    "journal": (journal, lambda path: Journal(path)),
    "records": (journal, read_records),
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
    if kind in ("journal", "records") and which == 0:
        return  # an empty file is a journal without records
    raises_for_another_file(FILES[kind][1], path, which)


@every_file
@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_are_read_or_raise(kind, seed, sound, path):
    reads_or_raises(FILES[kind][1], path, sound[kind], seed)


def test_missing_arrays_of_a_task_raise_with_their_name(sound, path):
    for kind, names in (
        ("spectra", ("theta", "x_low", "theta_names")),
        ("published", ("x_o", "posterior_samples")),
    ):
        path.write_bytes(sound[kind])
        arrays = dict(np.load(path))
        for name in names:
            with path.open("wb") as file:
                np.savez(file, **{k: v for k, v in arrays.items() if k != name})
            with pytest.raises(ValueError, match=f"foreign.file.*{name}"):
                FILES[kind][1](path)


@pytest.mark.parametrize(
    "record, named",
    [
        ({"seed": "1"}, "its seed is '1'"),
        ({"task": None}, "its task is None"),
        ({"num_simulations": 5}, "its num_simulations is 5"),
        ({"num_simulations": ["a"]}, "its num_simulations are"),
        ({"metrics": {"gap": {"mean": 1.0}}}, "without a mean and a median"),
        ({"metrics": {"gap": 1.0}}, "its gap is 1.0"),
        ({"observations": "all"}, "its observations is 'all'"),
        ({"seconds": "long"}, "its seconds is 'long'"),
        ({"versions": []}, r"its versions is \[\]"),
        ({"error": 1, "metrics": 1}, "its error is 1"),
    ],
)
def test_invalid_records_raise_with_their_line(record, named, path):
    good = benchmark_record(0)
    lines = (json.dumps(line) for line in (good, {**good, **record}, good))
    path.write_text("\n".join(lines))
    for read in (read_records, Journal):
        with pytest.raises(ValueError, match=f"Line 2 of path=.*{named}.*Remove"):
            read(path)


@pytest.mark.parametrize("content", ("my notes", '{"a": 1}\nmy notes', "1"))
def test_a_journal_does_not_change_a_file_of_another_kind(content, path):
    path.write_text(content)
    with pytest.raises(ValueError, match="is no record"):
        Journal(path)
    assert path.read_text() == content
