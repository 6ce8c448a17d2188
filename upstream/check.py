"""Checks the patches of this folder against the sources of sbi.

    python upstream/check.py            # sbi 0.27.0, source distribution from PyPI
    python upstream/check.py --quick    # without sbi's own tests
    python upstream/check.py --long     # with sbi's tests of FMPE and NPSE
    python upstream/check.py --series main --source FOLDER    # a clone of sbi

applies the patches to a copy of the sources, trains each method of sbi at a fixed seed
with and without them, compares weights and losses to the bit, does the same for the
methods of this package, and runs the tests that the patches add and sbi's own fast
tests of its trainers. The status is 1 if any of
these fails. What it needs is installed with this package's `dev` requirements.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
SDIST = "0.27.0"
SERIES = ("0.27", "main")
ADDED_TESTS = ("trainer_hooks_test.py", "inverse_transform_test.py")
# sbi's tests that train, but for those it marks as slow
TESTS = (
    "base_test.py",
    "ensemble_test.py",
    "inference_with_NaN_simulator_test.py",
    "linearGaussian_mdn_test.py",
    "linearGaussian_snle_test.py",
    "linearGaussian_snpe_test.py",
    "linearGaussian_snre_test.py",
    "save_and_load_test.py",
    "training_dataclasses_test.py",
)
LONG_TESTS = ("linearGaussian_vector_field_test.py",)  # as long as all of these


class Failure(Exception):
    """A check failed."""


def run(command: Sequence[str], folder: Path, what: str, sources: Path | None) -> None:
    """Run a command in a folder, with the sbi of `sources`."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # or git would look for the files in a repository around the folder
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }
    if sources is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(sources), str(HERE.parent)])
    if subprocess.run(command, cwd=folder, env=environment).returncode != 0:
        raise Failure(what)


def download(folder: Path) -> Path:
    """The unpacked source distribution of sbi."""
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "download", "-q", *options]
    command += ["-d", str(folder), f"sbi=={SDIST}"]
    run(command, folder, "the download of sbi", None)
    with tarfile.open(folder / f"sbi-{SDIST}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"sbi-{SDIST}"


def apply(series: str, sources: Path) -> int:
    """Apply the patches of a series in order; their number."""
    patches = sorted((HERE / "patches" / series).glob("*.patch"))
    if not patches:
        raise Failure(f"no patches in patches/{series}")
    for patch in patches:
        for options in (["--check"], []):
            command = ["git", "apply", "--whitespace=error-all", *options, str(patch)]
            run(command, sources, f"{patch.name} does not apply", None)
        print(f"applied {patch.name}", flush=True)
    for file in ADDED_TESTS:
        if not (sources / "tests" / file).exists():
            raise Failure(f"the patches were skipped: there is no tests/{file}")
    return len(patches)


def compare(before: Path, after: Path, folder: Path, script: str) -> None:
    """Train with both sources at a fixed seed, and compare."""
    results = []
    for name, sources in (("before", before), ("after", after)):
        out = folder / f"{name}.json"
        command = [sys.executable, str(HERE / script), str(out)]
        run(command, folder, f"training with the sources {name}", sources)
        results.append(json.loads(out.read_text()))
    old, new = results
    differing = [name for name in old if old[name] != new.get(name)]
    if differing or not old:
        raise Failure(f"other weights or losses at a fixed seed: {differing}")
    print(f"{len(old)} trainings have the same weights and losses", flush=True)


def test(sources: Path, files: Sequence[str], what: str) -> None:
    selection = ["-m", "not slow and not gpu and not benchmark"]
    command = [sys.executable, "-m", "pytest", "-W", "ignore", *selection]
    if importlib.util.find_spec("xdist") and len(files) > 1:
        command += ["-n", "2"]
    run([*command, *(f"tests/{file}" for file in files)], sources, what, sources)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--series", choices=SERIES, default="0.27", help="the patches")
    parser.add_argument(
        "--source", type=Path, help="sources of sbi with tests; from PyPI by default"
    )
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--quick", action="store_true", help="leave out the tests that sbi has"
    )
    extent.add_argument(
        "--long", action="store_true", help="also run sbi's tests of FMPE and NPSE"
    )
    options = parser.parse_args()
    if options.series != "0.27" and options.source is None:
        parser.error(f"--series {options.series} needs --source, a clone of sbi")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        try:
            sources = options.source or download(folder)
            before, after = folder / "before", folder / "after"
            for copy in (before, after):
                ignored = shutil.ignore_patterns(".git", "sbi-logs", "__pycache__")
                shutil.copytree(sources, copy, ignore=ignored)
            apply(options.series, after)
            compare(before, after, folder, "fixed_seed.py")
            if options.series == "0.27":  # the series that this package runs on
                compare(before, after, folder, "fixed_seed_package.py")
            test(after, ADDED_TESTS, "the tests that the patches add")
            if not options.quick:
                files = TESTS + LONG_TESTS if options.long else TESTS
                test(after, files, "sbi's own tests")
        except Failure as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    print("passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
