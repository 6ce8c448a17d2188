"""Batches of simulations of several levels.

The simulations of all terms are stored in one `TensorDataset`, one block for each term,
with the index of the term. A stage draws from the blocks of its own terms. A sampler
yields the indices of whole batches, which always contain both sides of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from sbi.utils.sbiutils import mask_sims_from_prior
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import MultilevelSimulations
from sbi_multilevel.level_maps.affine import AffineMap, Alignment
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.schedule import Stage, Term


@dataclass(frozen=True)
class Fold:
    """One of several folds of held-out simulations.

    Args:
        index: Which one, from 0.
        seed: Seed of the order of the simulations, the same for all folds.
    """

    index: int
    seed: int

    def order(self, count: int, num_held_out: int) -> Tensor:
        """The simulations `0, ..., count - 1`, those held out last.

        Folds hold out different simulations as long as there are enough of them.
        """
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(count, generator=generator)
        return order.roll(-self.index * num_held_out)


@dataclass(frozen=True, eq=False)
class LevelSplit:
    """Simulations of each level used for training and held out for validation."""

    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]

    @classmethod
    def random(
        cls,
        counts: Sequence[int],
        validation_fraction: float,
        fold: Fold | None = None,
        min_held_out: int = 1,
        max_held_out: int | None = None,
    ) -> LevelSplit:
        """Split each level at random.

        Args:
            counts: Simulations of each level.
            validation_fraction: Share held out; 0, or at least one simulation.
            fold: Which simulations are held out; any if `None`.
            min_held_out: Simulations of each level held out at least, but no more than
                a third of them for that.
            max_held_out: Simulations of each level held out at most; `None` for any
                number.
        """
        train, validation = [], []
        for count in counts:
            size = count
            if validation_fraction > 0:
                least = max(min(min_held_out, count // 3), 1)
                size = max(int((1 - validation_fraction) * count), 1)
                size = min(size, count - least)
                if max_held_out is not None:
                    size = max(size, count - max_held_out)
            if fold is None:
                order = torch.randperm(count)
            else:
                order = fold.order(count, count - size)
            train.append(order[:size])
            validation.append(order[size:])
        return cls(tuple(train), tuple(validation))

    def check(self) -> None:
        """Raise if a level has too few simulations beside those that are held out.

        Raises:
            ValueError: If one has fewer than two, of which no deviation is known.
        """
        for level, (kept, held_out) in enumerate(zip(self.train, self.validation)):
            if len(kept) < 2:
                raise ValueError(
                    f"Level {level} has {len(kept) + len(held_out)} simulations, of "
                    f"which {len(kept)} are left to train on, but at least 2 are "
                    "needed beside those held out for validation. Simulate more."
                )


@dataclass(frozen=True, eq=False)
class TermDataset:
    """The simulations of all terms, one block for each term.

    Args:
        dataset: Aligned simulations `(theta, x, prior_mask, weight, term)`.
        terms: The terms of all stages, in the order of their blocks.
        offsets: Position of the first simulation of each block.
        level_maps: The map of the simulations of each term.
    """

    dataset: TensorDataset
    terms: tuple[Term, ...]
    offsets: tuple[int, ...]
    level_maps: tuple[Alignment, ...]

    @classmethod
    def of(
        cls,
        simulations: MultilevelSimulations,
        split: LevelSplit,
        config: MethodConfig,
        moments: Moments | None = None,
        num_unaligned: Callable[[], int] = lambda: 0,
    ) -> TermDataset:
        """Lay out `simulations`, aligned by maps fitted on the training simulations.

        Args:
            simulations: Simulations of all levels.
            split: Those to train on, and those held out.
            config: The settings of the method.
            moments: Moments of the x that the network was built on, if there is one.
            num_unaligned: Returns the number of the last features of x that stay as
                they are; called only if x is moved.
        """
        stages = config.stages(len(simulations))
        terms = tuple(dict.fromkeys(t for stage in stages for t in stage.terms))
        # the copy of the training simulations is not kept
        found = config.align(simulations.select(split.train), terms, moments)
        if any(align.x for align in found):
            count = num_unaligned()
            found = [align.leaving(count) for align in found]
        level_maps = tuple(found)
        blocks, offsets = [], [0]
        for index, (term, align) in enumerate(zip(terms, level_maps, strict=True)):
            level = simulations[term.level]
            coarse = level.x_coarse if term.coarse else None
            theta, x = align(level.theta, level.x if coarse is None else coarse)
            mask = mask_sims_from_prior(0, len(level)).to(theta.device)
            marks = torch.full((len(level),), index, device=theta.device)
            blocks.append((theta, x, mask, level.loss_weights, marks))
            offsets.append(offsets[-1] + len(level))
        dataset = TensorDataset(*(torch.cat(column) for column in zip(*blocks)))
        return cls(dataset, terms, tuple(offsets[:-1]), level_maps)

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """Theta and x."""
        return self.dataset.tensors[:2]

    @property
    def is_aligned(self) -> bool:
        """Whether x of some term is moved."""
        return any(align.x for align in self.level_maps)

    def x_map_of(self, stage: Stage) -> AffineMap | None:
        """How x of the highest level of a stage is moved; `None` if it is not."""
        fine = [term for term in stage.terms if not term.coarse]
        highest = max(fine, key=lambda term: term.level)
        maps = self.level_maps[self.terms.index(highest)].x
        return maps[0] if maps else None

    def marked(self, terms: Sequence[Term]) -> dict[int, Term]:
        """Terms by their mark in the dataset, the position in `self.terms`."""
        return {self.terms.index(term): term for term in terms}

    def indices(
        self, chosen: Sequence[Tensor] | Mapping[int, Tensor], terms: Sequence[Term]
    ) -> Tensor:
        """Dataset indices, term by term, of chosen simulations of each level."""
        return torch.cat([
            chosen[term.level] + self.offsets[mark]
            for mark, term in self.marked(terms).items()
        ])


def batch_sizes(
    counts: Sequence[int], batch_size: int, sides: Sequence[int]
) -> list[int]:
    r"""Number of simulations of each level in a batch.

    A level whose simulations enter several terms (a pair enters two) counts as often.
    Levels enter in proportion to their simulations, but each of the L levels after the
    first gets at least `batch_size // (2 L)` of the batch if it has as many, to
    limit the variance of its gradient; the first level fills the rest. With few pairs
    this is half of a batch for the corrections. If pairs outnumber the first level, a
    batch can be larger by up to one half. If `batch_size` is at least the number of all
    simulations, a batch is the full data.

    Args:
        counts: Training simulations of each level of a stage.
        batch_size: Simulations in a batch.
        sides: In how many terms the simulations of each level enter.

    Returns:
        Simulations of each level in a batch, between 1 and its count.

    Example:
    --------

    ::

        >>> batch_sizes([10_000, 100], batch_size=200, sides=[1, 2])
        [100, 50]
        >>> batch_sizes([10_000, 100], batch_size=10_200, sides=[1, 2])
        [10000, 100]
        >>> batch_sizes([10_000], batch_size=200, sides=[1])
        [200]
    """
    total = sum(count * side for count, side in zip(counts, sides))
    floor = batch_size // (2 * max(len(counts) - 1, 1))
    later = [
        min(count, max(batch_size * count // total, floor // side, 1))
        for count, side in zip(counts[1:], sides[1:])
    ]
    taken = sum(size * side for size, side in zip(later, sides[1:]))
    return [min(counts[0], max((batch_size - taken) // sides[0], 1)), *later]


class LevelBatchSampler(Sampler[Tensor]):
    """Yields the dataset indices of whole batches, fresh permutations each epoch.

    An epoch passes once through the level that needs most batches (mostly the lowest);
    the others start again, reshuffled, when they run out.

    Args:
        dataset: The simulations of all terms.
        train: Simulations of each level to draw from.
        batch_size: Simulations in a batch, over all terms of the stage.
        stage: Which terms to draw.

    Attributes:
        num_available: Batches of a pass through all simulations.
    """

    def __init__(
        self,
        dataset: TermDataset,
        train: Sequence[Tensor],
        batch_size: int,
        stage: Stage,
    ):
        self._dataset, self._train, self._terms = dataset, train, stage.terms
        levels = stage.levels
        counts = [len(train[level]) for level in levels]
        sides = [sum(t.level == level for t in stage.terms) for level in levels]
        sizes = batch_sizes(counts, batch_size, sides)
        self._sizes = dict(zip(levels, sizes))
        self.num_available = max(n // m for n, m in zip(counts, sizes))
        self._num_batches = stage.epoch_size(self.num_available)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Tensor]:
        streams = {level: self._stream(level) for level in self._sizes}
        for _ in range(self._num_batches):
            drawn = {level: next(stream) for level, stream in streams.items()}
            yield self._dataset.indices(drawn, self._terms)

    def _stream(self, level: int) -> Iterator[Tensor]:
        indices, size = self._train[level], self._sizes[level]
        while True:
            order = indices[torch.randperm(len(indices))]
            for start in range(0, len(order) - size + 1, size):
                yield order[start : start + size]


@dataclass(frozen=True, eq=False)
class SizedLoader:
    """A loader of whole batches, with a nominal batch size.

    Args:
        loader: The loader.
        batch_size: The batch size.
    """

    loader: DataLoader
    batch_size: int

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def held_out_chunks(
    dataset: TermDataset, held_out: Sequence[Tensor], batch_size: int, stage: Stage
) -> list[Tensor]:
    """Dataset indices of held-out simulations in chunks, pairs together."""
    total = len(dataset.indices(held_out, stage.terms))
    count = -(-total // batch_size)
    parts = [level.tensor_split(count) for level in held_out] if count else []
    return [dataset.indices(chunk, stage.terms) for chunk in zip(*parts)]
