"""From the rows of the levels to the batches that a multilevel step is taken on.

The rows of all terms lie in one `TensorDataset`, a block a term, each row marked with
its term. A sampler yields the indices of whole batches; the two sides of a pair always
come together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from sbi.utils.sbiutils import mask_sims_from_prior
from torch import Tensor
from torch.utils.data import Sampler, TensorDataset

from sbi_multilevel.alignment import fit_alignments
from sbi_multilevel.recipes import Multilevel, Term
from sbi_multilevel.simulations import MultilevelSimulations


@dataclass(frozen=True, eq=False)
class LevelSplit:
    """Rows of each level used for training and held out for validation."""

    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]

    @classmethod
    def random(cls, counts: Sequence[int], validation_fraction: float) -> LevelSplit:
        """Split each level at random; 0 holds nothing out, else at least one row."""
        orders = [torch.randperm(count) for count in counts]
        sizes = [
            count
            if validation_fraction == 0
            else min(max(int((1 - validation_fraction) * count), 1), count - 1)
            for count in counts
        ]
        return cls(
            train=tuple(order[:size] for order, size in zip(orders, sizes)),
            validation=tuple(order[size:] for order, size in zip(orders, sizes)),
        )


@dataclass(frozen=True, eq=False)
class TermRows:
    """The rows of all terms, a block a term.

    Args:
        dataset: Aligned rows `(theta, x, prior_mask, term)`.
        terms: The terms, in the order of their blocks.
        offsets: Position of the first row of each block.
    """

    dataset: TensorDataset
    terms: tuple[Term, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(
        cls, simulations: MultilevelSimulations, split: LevelSplit, recipe: Multilevel
    ) -> TermRows:
        """Lay out `simulations`, aligned by maps fitted on the training rows."""
        terms = recipe.terms(len(simulations))
        alignments = fit_alignments(
            recipe.alignment,
            simulations.select(split.train),
            [(term.level, term.coarse) for term in terms],
        )
        blocks, offsets = [], [0]
        for index, (term, align) in enumerate(zip(terms, alignments, strict=True)):
            rows = simulations[term.level]
            coarse = rows.x_coarse if term.coarse else None
            theta, x = align(rows.theta, rows.x if coarse is None else coarse)
            mask = mask_sims_from_prior(0, len(rows)).to(theta.device)
            marks = torch.full((len(rows),), index, device=theta.device)
            blocks.append((theta, x, mask, marks))
            offsets.append(offsets[-1] + len(rows))
        dataset = TensorDataset(*(torch.cat(column) for column in zip(*blocks)))
        return cls(dataset, terms, tuple(offsets[:-1]))

    def indices(self, rows: Sequence[Tensor]) -> Tensor:
        """Dataset indices, term by term, of the rows `rows[l]` of each level `l`."""
        return torch.cat([
            rows[term.level] + offset for term, offset in zip(self.terms, self.offsets)
        ])


def rows_per_level(counts: Sequence[int], batch_size: int) -> list[int]:
    r"""How many rows of each level a batch of `batch_size` rows holds.

    A pair counts as two rows. Levels enter in proportion to their rows, but each of the
    L corrections gets at least `batch_size // (4 L)` pairs where it has them, so that
    their gradients are not made from single rows; level 0 fills what is left. With few
    pairs this is half of a batch for the corrections; where pairs outnumber level 0 a
    batch can hold up to half as many rows again. With `batch_size` at or above the
    number of all rows a batch holds everything (full batch).

    Args:
        counts: Training rows of each level, :math:`n_0, \dots, n_L`.
        batch_size: Rows in all.

    Returns:
        Rows of each level in a batch, between 1 and :math:`n_l`.

    Example:
    --------

    ::

        >>> rows_per_level([10_000, 100], batch_size=200)
        [100, 50]
        >>> rows_per_level([10_000, 100], batch_size=10_200)
        [10000, 100]
    """
    total = counts[0] + 2 * sum(counts[1:])
    floor = batch_size // (4 * max(len(counts) - 1, 1))
    pairs = [
        min(count, max(batch_size * count // total, floor, 1)) for count in counts[1:]
    ]
    return [min(counts[0], max(batch_size - 2 * sum(pairs), 1)), *pairs]


class LevelBatchSampler(Sampler[Tensor]):
    """Yields the dataset indices of whole batches, fresh permutations each epoch.

    An epoch passes once through the level that needs most batches (mostly level 0);
    the others start again, reshuffled, when they run out.

    Args:
        rows: The rows of all terms.
        train: Rows of each level to draw from.
        batch_size: Rows in a batch, over all terms.
    """

    def __init__(self, rows: TermRows, train: Sequence[Tensor], batch_size: int):
        self._rows, self._train = rows, train
        counts = [len(indices) for indices in train]
        self._sizes = rows_per_level(counts, batch_size)
        self._num_batches = max(n // m for n, m in zip(counts, self._sizes))

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Tensor]:
        streams = [self._stream(level) for level in range(len(self._train))]
        for _ in range(self._num_batches):
            yield self._rows.indices([next(stream) for stream in streams])

    def _stream(self, level: int) -> Iterator[Tensor]:
        indices, size = self._train[level], self._sizes[level]
        while True:
            order = indices[torch.randperm(len(indices))]
            for start in range(0, len(order) - size + 1, size):
                yield order[start : start + size]
