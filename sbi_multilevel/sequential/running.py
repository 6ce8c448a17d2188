"""All rounds in one go, with what goes wrong on the way."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from sbi_multilevel.sequential.rounds import Proposals, simulate
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator, derive_seed

if TYPE_CHECKING:
    from sbi_multilevel.sequential.mftsnpe import MFTSNPE

_NOISE = 13  # stream of seeds


def run_rounds(
    inference: MFTSNPE,
    simulators: tuple[Simulator | None, Simulator],
    num_simulations: int,
    num_rounds: int,
    *,
    noise: NoiseSampler | None,
    batch_size: int,
    num_workers: int,
    max_resampling: int | None,
    checkpoint: str | os.PathLike | None,
    show_progress_bars: bool,
) -> None:
    """Propose, simulate and train until all rounds are done.

    Arguments are those of `MFTSNPE.run`, with `simulators` the one a level below (or
    `None`) and the highest.
    """
    if num_rounds < 1 or num_simulations < 2 * num_rounds:
        raise ValueError(
            f"num_simulations={num_simulations} in num_rounds={num_rounds} rounds, but "
            "each round needs at least 2 simulations. Ask for fewer rounds."
        )
    if checkpoint is not None and Path(checkpoint).exists():
        inference.load(checkpoint)

    def save() -> None:
        if checkpoint is not None:
            inference.save(checkpoint)

    if inference._members is None:
        inference._pretrain()
        save()
    coarse, fine = simulators
    sizes = [
        num_simulations // num_rounds + (i < num_simulations % num_rounds)
        for i in range(num_rounds)
    ]
    with tqdm(
        total=num_simulations, disable=not show_progress_bars, desc="Simulations"
    ) as bar:
        while inference._round < num_rounds:
            size = sizes[inference._round]
            limit = size if max_resampling is None else max_resampling
            if inference._pending is None:
                inference.propose(size)
                save()
            pending, seed = inference._pending, _noise_seed(inference)
            assert pending is not None
            while True:
                for _ in simulate(
                    pending, (fine, coarse), noise, seed, batch_size, num_workers
                ):
                    save()
                    bar.n = sum(sizes[: inference._round]) + _num_done(pending)
                    bar.refresh()
                missing = size - _num_done(pending)
                if missing <= 0:
                    break
                _check_failures(pending, limit, inference._round, checkpoint)
                pending.extend(inference._draw(missing, is_active=False))
            _report(pending, inference._round)
            theta, _, *outputs = pending.done()
            inference.append_simulations(theta, *outputs)
            inference.train()
            save()


def _noise_seed(inference: MFTSNPE) -> int:
    return derive_seed(inference._seed, _NOISE, inference._round)


def _num_done(pending: Proposals) -> int:
    return sum(output is not None for output in pending.outputs)


def _check_failures(
    pending: Proposals, limit: int, round_: int, checkpoint: str | os.PathLike | None
) -> None:
    if len(pending.failures) > limit:
        kept = "" if checkpoint is None else f" The others are kept in {checkpoint}."
        raise RuntimeError(
            f"{len(pending.failures)} of {len(pending.outputs)} simulations of round "
            f"{round_ + 1} failed, more than max_resampling={limit}; the last said: "
            f"{pending.failures[-1]}.{kept} Mend the simulator, or raise the limit."
        )


def _report(pending: Proposals, round_: int) -> None:
    if pending.failures:
        warnings.warn(
            f"{len(pending.failures)} simulations of round {round_ + 1} failed and "
            "were replaced by others from the same proposal (the last said: "
            f"{pending.failures[-1]}). The posterior is that given a valid output.",
            stacklevel=4,
        )
