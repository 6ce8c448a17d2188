"""All rounds in one go, with what goes wrong on the way."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path

from sbi.inference import DirectPosterior, EnsemblePosterior
from tqdm.auto import tqdm

from sbi_multilevel.methods.sequential.checkpoint import read
from sbi_multilevel.methods.sequential.rounds import Proposals, simulate
from sbi_multilevel.methods.sequential.stepping import StepMixin
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator, derive_seed
from sbi_multilevel.simulation.tasks import Work
from sbi_multilevel.utils.argument_types import check_types

_NOISE = 13  # stream of seeds


class RunMixin(StepMixin):
    """Proposes, simulates and trains until all rounds are done."""

    def run(
        self,
        simulator: Simulator | tuple[Simulator, Simulator],
        num_simulations: int,
        num_rounds: int = 5,
        *,
        noise: NoiseSampler | None = None,
        simulation_batch_size: int = 1,
        num_workers: int = 1,
        max_resampling: int | None = None,
        checkpoint: str | os.PathLike | None = None,
        show_progress_bars: bool = True,
    ) -> DirectPosterior | EnsemblePosterior:
        """Do all rounds: propose, simulate, train.

        Args:
            simulator: The highest simulator, of theta and noise as in
                `simulate_multilevel`, or a pair `(coarse, fine)` to simulate both on
                the same theta and noise.
            num_simulations: High-fidelity simulations in all rounds together.
            num_rounds: Rounds.
            noise: Noise sampler, as in `simulate_multilevel`; seeds by default.
            simulation_batch_size: Rows that a simulator is given at once, and after
                which the state is saved.
            num_workers: Processes that simulate at the same time.
            max_resampling: Failed simulations (an exception, NaN or inf) of a round
                that may be replaced by others from the same proposal; as many as the
                round has by default.
            checkpoint: File to save the state to, after every batch of simulations and
                every training. If it exists, the run goes on from it.
            show_progress_bars: Whether to show progress.

        Returns:
            The posterior.

        Raises:
            RuntimeError: If more simulations fail than may be replaced.
            ValueError: If the checkpoint is of a run with other settings.
        """
        check_types(RunMixin.run, locals())
        if num_rounds < 1 or num_simulations < 2 * num_rounds:
            raise ValueError(
                f"num_simulations={num_simulations} in num_rounds={num_rounds} rounds, "
                "but each round needs at least 2. Ask for fewer rounds."
            )
        if self._new_rows > 0:
            raise RuntimeError(
                f"{self._new_rows} rows of this round were appended by hand. Call "
                "`train()` first, so that `run` begins with a round of its own."
            )
        if checkpoint is not None and Path(checkpoint).exists():
            self._go_on_from(checkpoint)
        if self._members is None:
            self._pretrain()
            self._save(checkpoint)
        coarse, fine = simulator if isinstance(simulator, tuple) else (None, simulator)
        sizes = [
            num_simulations // num_rounds + (i < num_simulations % num_rounds)
            for i in range(num_rounds)
        ]
        bar = tqdm(total=num_simulations, disable=not show_progress_bars)
        how = Work((coarse, fine), noise), simulation_batch_size, num_workers
        with bar:
            while self._round < num_rounds:
                size = sizes[self._round]
                limit = size if max_resampling is None else max_resampling
                bar.set_description(f"Round {self._round + 1}")
                bar.update(sum(sizes[: self._round]) - bar.n)
                if self._pending is None:
                    self.propose(size)
                    self._save(checkpoint)
                self._simulate_round(size, limit, checkpoint, bar, *how)
                assert self._pending is not None
                self.append_simulations(*self._pending.done()).train()
                self._save(checkpoint)
        return self.build_posterior()

    def _simulate_round(
        self,
        size: int,
        limit: int,
        checkpoint: str | os.PathLike | None,
        bar: tqdm,
        work: Work,
        batch_size: int,
        num_workers: int,
    ) -> None:
        """Simulate what is proposed, and others in place of what fails."""
        pending, before = self._pending, sum(self.summary["num_simulations"])
        assert pending is not None
        seed = derive_seed(self._seed, _NOISE, self._round)
        failed_before = len(pending.failures)
        while True:
            results = simulate(pending, work, seed, batch_size, num_workers)
            with contextlib.closing(results):
                for _ in results:
                    self._save(checkpoint)
                    bar.update(before + len(pending.outputs) - bar.n)
                    num_failed = len(pending.failures) - failed_before
                    _check_failures(pending, num_failed, limit, self._round, checkpoint)
            missing = size - len(pending.outputs)
            if missing <= 0:
                break
            pending.extend(self._draw(missing, is_active=False))
        if pending.failures:
            warnings.warn(
                f"{len(pending.failures)} simulations of round {self._round + 1} "
                "failed and were replaced by others from the same proposal (the last "
                f"said: {_last(pending)}). The posterior is that given a valid "
                "output.",
                stacklevel=4,
            )

    def _go_on_from(self, path: str | os.PathLike) -> None:
        """Load a checkpoint into a new object; nothing newer in memory is lost."""
        if self._round == 0 and self._pending is None:
            self.load(path)
        elif read(path)["counters"][1] != self._round:
            raise ValueError(
                f"checkpoint={str(path)!r} is of another round than this object. Go on "
                "from it in a new object, or name another file."
            )

    def _save(self, path: str | os.PathLike | None) -> None:
        if path is not None:
            self.save(path)


def _check_failures(
    pending: Proposals,
    num_failed: int,
    limit: int,
    round_: int,
    checkpoint: str | os.PathLike | None,
) -> None:
    if num_failed > limit:
        kept = "" if checkpoint is None else f" The others are kept in {checkpoint}."
        raise RuntimeError(
            f"{num_failed} of {len(pending.ended)} simulations of round {round_ + 1} "
            f"failed, more than max_resampling={limit}; the last said: "
            f"{_last(pending)}.{kept} Mend the simulator and run again, or raise "
            "the limit."
        )


def _last(pending: Proposals) -> str:
    """What the last failed row said."""
    return pending.failures[max(pending.failures)]
