r"""Morphology of a thick-tufted layer-5 pyramidal cell.

The synthetic tree has 120 branches and a length of 10.6 mm: a soma, eight basal trees,
an apical trunk of 0.55 mm with eight oblique trees, and a tuft. Numbers of branches,
lengths and radii are of the order of those of reconstructed cells of rat somatosensory
cortex, e.g. of Hay et al. (2011), doi:10.1371/journal.pcbi.1002107; the tree is not a
copy of one of them.

Daughters of a branch have radii by the 3/2 power law of Rall,
:math:`r_\mathrm{parent}^{3/2} = 2 r_\mathrm{daughter}^{3/2}`, and at least 0.3 um. The
length of branch k of the side trees is the mean length of its order times
:math:`1 + 0.35\,(2 \{k \varphi\} - 1)`, where :math:`\{\cdot\}` is the fractional part
and :math:`\varphi` the golden ratio: lengths vary by up to 35 %, without random
numbers.

All branches are truncated cones, and compartments cylinders of the radius at their
center. So the same tree can be cut into any number of compartments a branch.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sbi_multilevel.utils.files import expect, understood

MIN_RADIUS = 0.3  # um
SPREAD_OF_LENGTHS = 0.35
# mean lengths (um) of each order, and radius (um) of the first branch
BASAL, BASAL_RADIUS, NUM_BASAL = (20.0, 50.0, 120.0), 0.9, 8
OBLIQUE, OBLIQUE_RADIUS, NUM_OBLIQUE = (40.0, 110.0), 0.6, 8
TUFT, TUFT_RADIUS = (40.0, 70.0, 90.0, 130.0), 1.0
SOMA_LENGTH, SOMA_RADIUS = 22.0, 10.0  # um
TRUNK_RADII = 2.4, 1.4  # um, at the soma and at the tuft
TRUNK_STEP, TRUNK_END = 35.0, 270.0  # um, between obliques, and beyond the last

_GOLDEN = (math.sqrt(5.0) - 1) / 2


class Morphology(Protocol):
    """The shape of a cell.

    Attributes:
        digest: Hash of the shape.
    """

    @property
    def digest(self) -> str: ...

    def build(self, num_compartments: int) -> Any:
        """The cell, a `jaxley.Cell` whose branches of the soma are in the group `soma`.

        Args:
            num_compartments: Compartments a branch.
        """
        ...


@dataclass(frozen=True)
class Branch:
    """A truncated cone.

    Args:
        kind: "soma", "basal" or "apical".
        parent: Number of the branch it begins at, -1 for the first.
        length: Length, um.
        start: Radius at the parent, um.
        end: Radius at the other end, um.
    """

    kind: str
    parent: int
    length: float
    start: float
    end: float

    @property
    def area(self) -> float:
        """Area of the side, um^2, without the slope of the cone."""
        return math.pi * self.length * (self.start + self.end)


@dataclass(frozen=True)
class Tree:
    """Branches, each after its parent.

    Args:
        branches: The branches; the first is the soma.
    """

    branches: tuple[Branch, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.branches).encode()).hexdigest()

    def radii(self, num_compartments: int) -> np.ndarray:
        """Radius of each compartment, um, branch after branch."""
        centers = (np.arange(num_compartments) + 0.5) / num_compartments
        return np.concatenate([
            b.start + (b.end - b.start) * centers for b in self.branches
        ])

    def build(self, num_compartments: int) -> Any:
        jaxley = import_module("jaxley")
        branch = jaxley.Branch(jaxley.Compartment(), ncomp=num_compartments)
        cell = jaxley.Cell(branch, parents=[b.parent for b in self.branches])
        lengths = [b.length / num_compartments for b in self.branches]
        cell.set("length", np.repeat(lengths, num_compartments))
        cell.set("radius", self.radii(num_compartments))
        cell.branch(0).add_to_group("soma")
        return cell


@dataclass
class _Growing:
    """A tree under construction."""

    branches: list[Branch] = field(default_factory=list)
    count: int = 0  # of branches whose length varies

    def add(self, kind: str, parent: int, length: float, *radii: float) -> int:
        """Add a branch, and return its number."""
        # rounded, so that no digit depends on the processor
        start, end = (round(radius, 3) for radius in radii)
        self.branches.append(Branch(kind, parent, round(length, 3), start, end))
        return len(self.branches) - 1

    def grow(
        self, kind: str, parent: int, means: Sequence[float], radius: float
    ) -> None:
        """Add a binary tree with the mean lengths of each order."""
        self.count += 1
        deviation = 2 * (self.count * _GOLDEN % 1) - 1
        length = means[0] * (1 + SPREAD_OF_LENGTHS * deviation)
        branch = self.add(kind, parent, length, radius, max(0.9 * radius, MIN_RADIUS))
        if len(means) > 1:
            daughter = max(radius * 2 ** (-2 / 3), MIN_RADIUS)
            for _ in range(2):
                self.grow(kind, branch, means[1:], daughter)


def thick_tufted() -> Tree:
    """The synthetic tree, see the module."""
    growing = _Growing()
    soma = growing.add("soma", -1, SOMA_LENGTH, SOMA_RADIUS, SOMA_RADIUS)
    for _ in range(NUM_BASAL):
        growing.grow("basal", soma, BASAL, BASAL_RADIUS)
    trunk, parts = soma, NUM_OBLIQUE + 1
    radii = np.linspace(*TRUNK_RADII, parts + 1).tolist()
    for part in range(parts):
        length = TRUNK_STEP if part < NUM_OBLIQUE else TRUNK_END
        trunk = growing.add("apical", trunk, length, *radii[part : part + 2])
        if part < NUM_OBLIQUE:
            growing.grow("apical", trunk, OBLIQUE, OBLIQUE_RADIUS)
    for _ in range(2):
        growing.grow("apical", trunk, TUFT, TUFT_RADIUS)
    return Tree(tuple(growing.branches))


@dataclass(frozen=True)
class SWCFile:
    """A reconstructed morphology in a file.

    Args:
        path: The file.
        digest: Hash of its content.
    """

    path: str
    digest: str

    def build(self, num_compartments: int) -> Any:
        jaxley = import_module("jaxley")
        return jaxley.read_swc(self.path, ncomp=num_compartments)


def read_swc_file(path: str | os.PathLike) -> SWCFile:
    """Check a file of a morphology, which jaxley reads when the cell is built.

    Args:
        path: An SWC file: a line of number, type, x, y, z, radius (um) and parent for
            each point. Points of type 1 are the soma.

    Raises:
        ValueError: If there is no such file, or it is no connected tree with a soma.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"path={os.fspath(path)!r} is no file. Name an SWC file by `--data FILE`, "
            "or leave it out to use the synthetic morphology."
        )
    remedy = "Name an SWC file with one tree and a soma, in um."
    with understood("path", path, "a morphology (SWC)", remedy):
        points = np.loadtxt(path, ndmin=2)
        expect(points.ndim == 2 and points.shape[1] == 7, "lines need 7 numbers")
        expect(bool(np.isfinite(points).all()), "there are NaN or infinite numbers")
        numbers, kinds, radii, parents = points[:, [0, 1, 5, 6]].T
        expect(len(set(numbers)) == len(numbers), "numbers of points repeat")
        expect(bool((radii > 0).all()), "radii must be positive")
        expect(bool((kinds == 1).any()), "no point is of type 1 (soma)")
        expect((parents == -1).sum() == 1, "there must be one point with parent -1")
        position = {number: row for row, number in enumerate(numbers)}
        earlier = [
            parent == -1 or position.get(parent, len(points)) < row
            for row, parent in enumerate(parents)
        ]
        expect(all(earlier), "points must come after their parents")
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return SWCFile(os.path.abspath(path), digest)
