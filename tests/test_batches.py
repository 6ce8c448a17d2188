"""Splits, batch sizes and the sampler of batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.batches import (
    LevelBatchSampler,
    LevelSplit,
    TermDataset,
    batch_sizes,
)
from sbi_multilevel.training.plan import Layout
from sbi_multilevel.training.schedule import Stage, Term
from tests.linear_gaussian import simulations

(STAGE,) = MultilevelConfig().stages(3)
counts_strategy = st.lists(st.integers(2, 500), min_size=2, max_size=4)


@settings(max_examples=200, deadline=None)
@given(counts=counts_strategy, batch_size=st.integers(1, 3_000))
def test_rows_per_level(counts, batch_size):
    sizes = batch_sizes(counts, batch_size, [1] + [2] * (len(counts) - 1))
    assert all(1 <= size <= count for size, count in zip(sizes, counts))
    in_all = sizes[0] + 2 * sum(sizes[1:])
    at_least = 1 + 2 * (len(counts) - 1)  # one row or pair of each level
    assert in_all <= 1.5 * batch_size + at_least
    if batch_size >= counts[0] + 2 * sum(counts[1:]):
        assert sizes == counts
    for size, count in zip(sizes[1:], counts[1:]):
        assert size >= min(count, batch_size // (4 * (len(counts) - 1)))


@settings(max_examples=100, deadline=None)
@given(counts=counts_strategy, fraction=st.sampled_from((0.0, 0.01, 0.1, 0.5, 0.99)))
def test_splits_are_partitions(counts, fraction):
    split = LevelSplit.random(counts, fraction)
    for count, train, validation in zip(counts, split.train, split.validation):
        assert sorted(torch.cat([train, validation]).tolist()) == list(range(count))
        assert len(train) >= 1
        assert len(validation) >= (fraction > 0)
        assert len(validation) == 0 or fraction > 0


@pytest.mark.parametrize("count, held_out", [(3, 1), (10, 3), (20, 4), (100, 10)])
def test_few_rows_hold_out_more_where_a_rule_needs_them(count, held_out):
    split = LevelSplit.random([count], 0.1, min_held_out=4)
    assert len(split.validation[0]) == held_out
    assert len(split.train[0]) == count - held_out


def term_rows(config=MultilevelConfig(alignment=None), fraction=0.1):
    sims = simulations((40, 10, 6))
    split = LevelSplit.random(sims.num_simulations, fraction)
    return sims, split, TermDataset.of(sims, split, config)


def test_blocks_hold_the_rows_of_their_terms():
    sims, _, rows = term_rows()
    theta, x, mask, weight, term = rows.dataset.tensors
    assert (weight == 1).all()
    assert term.tolist() == [0] * 40 + [1] * 10 + [2] * 10 + [3] * 6 + [4] * 6
    assert mask.all() and mask.shape == (72, 1)
    expected = [sims[0].x, sims[1].x, sims[1].x_coarse, sims[2].x, sims[2].x_coarse]
    assert torch.equal(x, torch.cat(expected))
    assert torch.equal(theta[40:50], theta[50:60])


def test_every_batch_holds_whole_pairs_of_training_rows():
    _, split, rows = term_rows()
    sampler = LevelBatchSampler(rows, split.train, batch_size=20, stage=STAGE)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 1
    allowed = set(rows.indices(split.train, STAGE.terms).tolist())
    for batch in batches:
        assert set(batch.tolist()) <= allowed
        theta, *_, term = rows.dataset[batch]
        for fine, coarse in ((1, 2), (3, 4)):
            assert len(theta[term == fine]) > 0
            assert torch.equal(theta[term == fine], theta[term == coarse])


def test_an_epoch_passes_once_through_the_largest_level():
    _, split, rows = term_rows()
    sampler = LevelBatchSampler(rows, split.train, batch_size=16, stage=STAGE)
    drawn = torch.cat(list(sampler))
    base = drawn[drawn < 40].tolist()
    assert len(base) == len(set(base))
    assert len(base) > len(split.train[0]) - len(base) / len(sampler)


def test_full_batch_holds_everything_once():
    _, split, rows = term_rows(fraction=0.0)
    (batch,) = LevelBatchSampler(rows, split.train, batch_size=10_000, stage=STAGE)
    assert sorted(batch.tolist()) == list(range(72))


@pytest.mark.parametrize("at_most, expected", ((1, 1), (3, 3), (1_000, 7), (None, 7)))
def test_a_stage_may_limit_the_batches_of_an_epoch(at_most, expected):
    _, split, rows = term_rows(TransferConfig(alignment=None))
    stage = Stage((Term(0),), num_batches=at_most)
    sampler = LevelBatchSampler(rows, split.train, batch_size=5, stage=stage)
    assert len(split.train[0]) // 5 == 7
    assert len(list(sampler)) == len(sampler) == expected


def test_limited_epochs_draw_other_rows_each_time():
    _, split, rows = term_rows(TransferConfig(alignment=None))
    stage = Stage((Term(0),), num_batches=1)
    sampler = LevelBatchSampler(rows, split.train, batch_size=5, stage=stage)
    drawn = torch.cat([batch for _ in range(60) for batch in sampler])
    assert set(drawn.tolist()) == set(split.train[0].tolist())


def test_batches_of_a_rehearsing_stage_hold_rows_of_all_its_levels():
    config = TransferConfig(alignment=None, rehearsal=0.4)
    sims, split, rows = term_rows(config)
    stage = config.stages(3)[2]
    positions = list(rows.marked(stage.terms))
    assert len(set(positions)) == 3
    for batch in LevelBatchSampler(rows, split.train, batch_size=12, stage=stage):
        _, x, *_, marks = rows.dataset[batch]
        assert set(marks.tolist()) == set(positions)
        for level, position in enumerate(positions):
            known = sims[level].x
            for row in x[marks == position]:
                assert (known == row).all(dim=1).any()


@pytest.mark.parametrize("batch_size", (7, 40, 1_000))
def test_held_out_pairs_are_in_one_chunk_in_the_same_order(batch_size):
    sims = simulations((100, 30, 20))
    split = LevelSplit.random(sims.num_simulations, 0.4)
    dataset = TermDataset.of(sims, split, MultilevelConfig())
    layout = Layout(sims, dataset, (STAGE,), batch_size, {}, split)
    _, held_out = layout.loaders(STAGE)
    terms = [(t, p) for p, t in dataset.marked(STAGE.terms).items()]
    seen = 0
    for theta, *_, marks in held_out:
        seen += len(marks)
        for level in (1, 2):
            fine, coarse = (theta[marks == p] for t, p in terms if t.level == level)
            assert torch.equal(fine, coarse)
    assert seen == 40 + 2 * 12 + 2 * 8
