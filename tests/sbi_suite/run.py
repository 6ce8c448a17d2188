"""Runs sbi's own tests with multilevel trainers in place of their parents.

`MLNPE` takes the place of `NPE`, and so on for likelihoods, ratios and vector fields.

The tests come with sbi's source distribution on PyPI, of the version installed here.
It is downloaded to a folder that git ignores; nothing of it is part of this package.

    python tests/sbi_suite/run.py [pytest arguments]
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / ".sbi-tests"
FILES = (
    "base_test.py",
    "inference_with_NaN_simulator_test.py",
    "linearGaussian_mdn_test.py",
    "linearGaussian_snle_test.py",
    "linearGaussian_snpe_test.py",
    "linearGaussian_snre_test.py",
    # the others take many minutes
    "linearGaussian_vector_field_test.py::test_vfinference_with_different_models",
    "linearGaussian_vector_field_test.py"
    "::test_fmpe_time_dependent_z_scoring_integration",
    "save_and_load_test.py",
)
# asserts that a warning says "NPE_C"; ours says "MLNPE", the name of the class
DESELECTED = (
    "inference_with_NaN_simulator_test.py"
    "::test_multiround_npe_c_warns_when_excluding_invalid_x",
)


def download() -> Path:
    """The folder of sbi's source distribution, with its tests."""
    name = f"sbi-{version('sbi')}"
    if not (FOLDER / name).exists():
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        package = f"sbi=={version('sbi')}"
        command = ["pip", "download", "-q", *options, "-d", str(FOLDER), package]
        subprocess.run([sys.executable, "-m", *command], check=True)
        with tarfile.open(FOLDER / f"{name}.tar.gz") as archive:
            archive.extractall(FOLDER, filter="data")
    return FOLDER / name


def main() -> int:
    root = download()
    # the copy of sbi beside the tests must not shadow the one that is installed
    sources = root / "sbi"
    if sources.exists():
        sources.rename(root / "sources_of_sbi")
    tests = [f"tests/{file}" for file in FILES]
    tests += [f"--deselect=tests/{test}" for test in DESELECTED]
    selection = ["-m", "not slow and not gpu and not benchmark"]
    command = ["pytest", "-p", "sbi_swap_plugin", "-q", *selection, *sys.argv[1:]]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-m", *command, *tests], cwd=root, env=environment
    )
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
