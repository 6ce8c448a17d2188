"""Stores of unknown origin: only arrays of the layout of this package are decoded."""

import json
import pickle
import shutil

import numpy as np
import pytest

from sbi_multilevel import SimulationStore
from tests.mutations import Touch, odd_value
from tests.two_levels import PRIOR, assert_same, contents, normal_noise
from tests.two_levels import simulate as run_

zarr = pytest.importorskip("zarr")

ROWS = (40, 20)
OPENINGS = {
    "read": lambda path: SimulationStore.open(path, read_only=True).to_simulations(),
    "go on": lambda path: run(store=path),
    "repair": lambda path: SimulationStore.open(path).repair(),
    "grow": lambda path: SimulationStore.create(
        path, PRIOR, (50, 30), noise=normal_noise
    ),
}
openings = pytest.mark.parametrize("opening", OPENINGS)


def run(n=ROWS, **options):
    return run_(n=n, **options)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "run.zarr"
    run(store=path)
    return path


@pytest.fixture
def path(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run.zarr")


def read(path, name=""):
    return json.loads((path / name / "zarr.json").read_text())


def write(node, path, name=""):
    (path / name).mkdir(exist_ok=True)
    (path / name / "zarr.json").write_text(json.dumps(node))


def edit(path, name, **changes):
    write({**read(path, name), **changes}, path, name)


def pickled_objects():
    """Metadata of an array of objects in format 2, which unpickles its chunks."""
    return {
        "zarr_format": 2,
        "shape": [40, 2],
        "chunks": [1_000, 2],
        "dtype": "|O",
        "fill_value": "",
        "order": "C",
        "compressor": None,
        "filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}],
        "dimension_separator": ".",
        "attributes": {},
    }


# ------------------------------------------------------------- code


def consolidated_in_root(path):
    metadata = {
        name: read(path, name)
        for level in (0, 1)
        for name in (f"level_{level}", f"level_{level}/status", f"level_{level}/theta")
    }
    return "", {**metadata, "level_0/x": pickled_objects()}


def consolidated_in_level(path):
    return "level_0", {"x": pickled_objects()}


def consolidated_in_copy(path):
    copy = read(path, "level_0")
    inner = {"x": pickled_objects()}
    copy["consolidated_metadata"] = {"kind": "inline", "metadata": inner}
    return "", {"level_0": copy}


@openings
@pytest.mark.parametrize(
    "place", [consolidated_in_root, consolidated_in_level, consolidated_in_copy]
)
def test_codecs_in_consolidated_metadata_raise(path, place, opening):
    node, metadata = place(path)
    copies = {"kind": "inline", "must_understand": False, "metadata": metadata}
    edit(path, node, consolidated_metadata=copies)
    mark = path.parent / "code_ran"
    (path / "level_0" / "x" / "0.0").write_bytes(pickle.dumps(Touch(mark)))
    before = contents(path)
    with pytest.raises(ValueError, match="level_0/x has the codec 'pickle'"):
        OPENINGS[opening](path)
    assert not mark.exists() and contents(path) == before


@openings
@pytest.mark.parametrize(
    "codec",
    [
        {"name": "numcodecs.pickle", "configuration": {"protocol": 5}},
        {"name": "sharding_indexed", "configuration": {"codecs": []}},
        {"name": "nobody.knows"},
        "pickle",
    ],
)
def test_unknown_codecs_raise_before_a_chunk_is_read(path, codec, opening):
    codecs = read(path, "level_1/x")["codecs"]
    edit(path, "level_1/x", codecs=[*codecs, codec])
    for chunk in path.rglob("c/**/0"):
        if chunk.is_file():  # reading one would raise another error
            chunk.write_bytes(b"no chunk")
    name = codec if isinstance(codec, str) else codec["name"]
    with pytest.raises(ValueError, match=f"level_1/x has the codec '{name}'"):
        OPENINGS[opening](path)


# ------------------------------------------------------------- layout


def level_2(path):
    write({"zarr_format": 3, "node_type": "group", "attributes": {}}, path, "level_2")


def link_of_a_level(path):
    (path / "level_1").rename(path.parent / "elsewhere")
    (path / "level_1").symlink_to(path.parent / "elsewhere")


def link_of_chunks(path):
    (path / "level_1" / "x" / "c").rename(path.parent / "c")
    (path / "level_1" / "x" / "c").symlink_to(path.parent / "c")


def chunks_of(*shape):
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


def attributes(**changes):
    def change(path):
        edit(path, "", attributes={**read(path)["attributes"], **changes})

    return change


def fingerprint(**changes):
    def change(path):
        asked = {**read(path)["attributes"]["fingerprint"], **changes}
        attributes(fingerprint=asked)(path)

    return change


def of(name, **changes):
    return lambda path: edit(path, name, **changes)


def text(name, content):
    return lambda path: (path / name).write_text(content)


def absurd(path):
    for name in ("theta", "seed", "seconds", "error", "x", "status"):
        shape = read(path, f"level_0/{name}")["shape"]
        edit(path, f"level_0/{name}", shape=[10**15, *shape[1:]])


def wide(path):
    shape = [40, 10**12]
    edit(path, "level_0/x", shape=shape, chunk_grid=chunks_of(1_000, 10**12))


FAULTS = {
    "format": (of("level_0/x", zarr_format=2), "level_0/x has zarr_format 2, not 3"),
    "format of a group": (of("level_0", zarr_format=2), "level_0 has zarr_format 2"),
    "format of the root": (of("", zarr_format=2), "zarr.json has zarr_format 2"),
    "group": (of("level_0/x", node_type="group"), "level_0/x has node_type 'group'"),
    "objects": (of("level_0/x", data_type="object"), "x has data_type 'object'"),
    "text": (of("level_0/x", data_type="string"), "data_type 'string', not 'float32'"),
    "extension": (of("level_0/x", data_type={"name": "numpy.void"}), "data_type {"),
    "fill value": (of("level_0/status", fill_value=1), "fill_value 1, not 0"),
    "grid": (of("level_0/x", chunk_grid={"name": "other"}), "chunk_grid {'name': 'ot"),
    "chunks": (of("level_0/x", chunk_grid=chunks_of(10**15, 2)), "x has chunk_grid"),
    "keys": (of("level_0/x", chunk_key_encoding={"name": "v2"}), "chunk_key_encoding"),
    "storage": (of("level_0/x", storage_transformers=[{}]), "storage_transformers"),
    "size of theta": (of("level_0/theta", shape=[40, 3]), r"of shape \(3,\), not \("),
    "size of x": (of("level_0/x", shape=[40]), r"level_0/x has entries of shape \(\)"),
    "no numbers": (of("level_0/x", shape=[40, "2"]), r"level_0/x has shape \[40, '2'"),
    "negative": (of("level_0/x", shape=[-40, 2]), r"level_0/x has shape \[-40"),
    "fewer": (of("level_0/x", shape=[39, 2]), "x has 39 entries, but .*status 40"),
    "too long": (absurd, "declares 10{15} simulations, but the chunks of level_0/th"),
    "too wide": (wide, "level_0/x.* a chunk must fit in memory"),
    "zarr's own": (
        of(
            "level_0/x",
            codecs=[{"name": "bytes"}, {"name": "zstd", "configuration": 7}],
        ),
        "level_0' cannot be read as arrays of a store",
    ),
    "format 2": (
        text("level_0/x/.zarray", "{}"),
        "x/.zarray is metadata of zarr",
    ),
    "format 2 group": (text(".zgroup", "{}"), ".zgroup is metadata of zarr format 2"),
    "one more level": (level_2, "level_2 is not part of a store"),
    "link": (link_of_a_level, "level_1/.* is a link out of the store"),
    "link of chunks": (link_of_chunks, "level_1/x/c is a link out of the store"),
    "no JSON": (text("level_0/x/zarr.json", "{"), "x/zarr.json is not valid JSON"),
    "deep JSON": (text("level_0/x/zarr.json", "[" * 10**5), "json is not valid JSON"),
    "a list": (text("level_0/x/zarr.json", "[]"), r"level_0/x has metadata \[\]"),
    "chunk rows": (attributes(chunk_rows=[0, 5]), r"chunk_rows is \[0, 5\]"),
    "levels": (attributes(chunk_rows=[5]), "not a number of .* each of 2 levels"),
    "seed": (fingerprint(seed="1"), "the fingerprint has seed '1'"),
    "draws": (fingerprint(prior=[[0.1, 0.2], [0.3]]), "fingerprint has prior"),
    "names": (fingerprint(simulators=[1]), "fingerprint has simulators"),
    "more": (fingerprint(more=1), "the fingerprint must have"),
    "version": (attributes(version="new"), "has version 'new' of the format"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_metadata_outside_the_layout_raises_with_its_name(path, fault):
    change, named = FAULTS[fault]
    change(path)
    before = contents(path)
    for opening in OPENINGS.values():
        with pytest.raises(ValueError, match=named):
            opening(path)
    assert contents(path) == before


def test_an_additional_array_raises(path):
    write(read(path, "level_0/x"), path, "level_0/y")
    with pytest.raises(ValueError, match="level_0/y is not part of a store"):
        OPENINGS["read"](path)


def test_an_unknown_status_raises(path):
    status = zarr.open_array(str(path / "level_0" / "status"), mode="r+")
    status[3] = 77
    with pytest.raises(ValueError, match="status of level 0 has the value 77"):
        SimulationStore.open(path).summary()


def test_missing_x_raises_and_can_be_repaired(path):
    shutil.rmtree(path / "level_0" / "x")
    with pytest.raises(OSError, match="x of level 0 cannot be read.*repair"):
        OPENINGS["read"](path)
    assert SimulationStore.open(path).repair() == ROWS[0]
    assert_same(run(store=path), run())


# ------------------------------------------------------------- sound stores


def test_valid_consolidated_metadata_change_nothing(path):
    with pytest.warns(match="Consolidated metadata"):  # no part of the format yet
        for name in ("level_0", "level_1", ""):
            zarr.consolidate_metadata(str(path / name))
    assert_same(run(store=path), run())
    # the consolidated metadata have an outdated length then
    assert_same(run(n=(60, 30), store=path), run(n=(60, 30)))


def test_other_files_are_ignored(path):
    (path / "notes.txt").write_text("mine")
    (path / "level_0" / "plots").mkdir()
    assert_same(run(store=path), run())


def test_a_chunk_that_is_too_large_raises_before_it_is_written(tmp_path):
    path = tmp_path / "run.zarr"
    SimulationStore.create(path, PRIOR, ROWS, noise=normal_noise, chunk_size=10**12)
    with pytest.raises(ValueError, match="smaller chunk_size than 10{12}"):
        run(store=path, simulation_batch_size=5)
    assert "40 pending" in SimulationStore.open(path).summary()


@pytest.mark.parametrize("seed", range(60))
def test_random_metadata_are_read_or_raise(path, seed):
    """A wrong value in the metadata never leads to an error of another package."""
    files = sorted(path.rglob("zarr.json"))
    file = files[np.random.default_rng(seed).integers(len(files))]
    file.write_text(json.dumps(odd_value(json.loads(file.read_text()), seed)))
    try:
        store = SimulationStore.open(path, read_only=True)
        store.summary(), store.failures()
        sims = store.to_simulations()
    except (ValueError, OSError) as error:
        assert "run.zarr" in str(error)
    else:
        assert_same(sims, run())
