"""Rounds of proposals, simulations and training for one observation."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from sbi.inference import DirectPosterior, EnsemblePosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import Self

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.data.validation import check_level
from sbi_multilevel.methods.sequential import checkpoint as checkpoints
from sbi_multilevel.methods.sequential.coverage import coverage_levels
from sbi_multilevel.methods.sequential.members import RoundTrainer
from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.methods.sequential.proposer import Proposer, Region
from sbi_multilevel.methods.sequential.runner import Runner
from sbi_multilevel.methods.sequential.settings import RoundSettings, Stream
from sbi_multilevel.methods.sequential.state import RoundState, check_theta, sums_of
from sbi_multilevel.simulation.arguments import per_level
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.simulation.tasks import Work
from sbi_multilevel.training.ensemble import trainer_state
from sbi_multilevel.training.trainer import MultilevelTrainer
from sbi_multilevel.utils.argument_types import check_types
from sbi_multilevel.utils.files import expect
from sbi_multilevel.utils.seeds import seeded


class Rounds:
    """Sequential inference: proposes parameters, stores simulations, and trains.

    A subclass sets the trainer of its members, `_member_type`. A `Proposer` draws
    parameters, a `RoundTrainer` trains the networks, and a `Runner` simulates.

    Args:
        settings: The settings of the run.
        x_o: The observation, shape `(1, *x_shape)`.
    """

    _member_type: ClassVar[type[MultilevelTrainer]]

    def __init__(self, settings: RoundSettings, x_o: Tensor):
        self._settings, self._state = settings, RoundState(x_o)
        self._trainer = RoundTrainer(self._member_type, settings)
        self._proposer = Proposer(settings, self.build_posterior)

    @property
    def x_o(self) -> Tensor:
        """The observation, shape `(1, *x_shape)`."""
        return self._state.x_o

    @property
    def summary(self) -> dict[str, list]:
        """Lists with an entry per round, see the class."""
        return self._state.summary

    # Simulations and networks from elsewhere

    def append_lowfidelity_simulations(
        self, theta: Tensor, x: Tensor, level: int = 0
    ) -> Self:
        """Store simulations of a lower level, drawn from the prior, for pre-training.

        Args:
            theta: Parameters drawn from the prior, shape `(n, d_theta)`, or, where
                `parameters` were given, the columns of this level.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            level: Their level; the highest level is above all of these.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If they do not fit, or networks were pre-trained already.
        """
        state = self._state
        if state.index > 0 or state.is_pretrained:
            when = "the first round" if state.index > 0 else "pre-training"
            raise ValueError(
                f"Low-fidelity simulations were appended after {when}. Append all of "
                "them before `train` or `run`, or, with an acquisition, before "
                "`propose`; or start from scratch in a new object."
            )
        check_level(level)
        state.check_x(x)
        self._trainer.append_low_fidelity(theta, x, level)
        return self

    def warm_start(
        self,
        estimators: ConditionalDensityEstimator | Sequence[ConditionalDensityEstimator],
    ) -> Self:
        """Start from networks that were pre-trained elsewhere.

        They are not trained on low-fidelity simulations then; if any are appended,
        levels are aligned by them.

        Args:
            estimators: One for all members, or one for each, e.g. those of
                `train_ensemble(...).estimators`.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If their number or shapes do not fit.
        """
        check_types(Rounds.warm_start, locals())
        num_members = self._settings.num_members
        if isinstance(estimators, ConditionalDensityEstimator):
            estimators = [estimators] * num_members
        if len(estimators) != num_members:
            raise ValueError(
                f"estimators are {len(estimators)}, but num_members is {num_members}. "
                "Pass one, or one for each member."
            )
        networks = [self._trainer.network_from(each, self.x_o) for each in estimators]
        self._state.networks = networks
        return self

    # The steps of a round

    def propose(self, num_simulations: int) -> Tensor:
        """Parameters to simulate next.

        In the first round they are draws from the prior, later from the truncated
        prior. With an acquisition the last ones are active points, and networks are
        pre-trained first. Several calls in one round add up.

        Args:
            num_simulations: Number of parameters.

        Returns:
            Theta, shape `(num_simulations, d_theta)`.

        Raises:
            RuntimeError: If the truncated prior accepts nothing.
        """
        check_types(Rounds.propose, locals())
        if num_simulations < 1:
            raise ValueError(f"num_simulations must be >= 1, but is {num_simulations}.")
        proposals = self._draw(num_simulations)
        if self._state.pending is None:
            self._state.pending = proposals
        else:
            self._state.pending.extend(proposals)
        return proposals.theta

    def append_simulations(
        self, theta: Tensor, x: Tensor, x_coarse: Tensor | None = None
    ) -> Self:
        """Store high-fidelity simulations of this round.

        Args:
            theta: Parameters that were proposed in this round; some may be missing.
            x: Outputs of the highest simulator, shape `(n, *x_shape)`. Simulations
                with NaN or inf are dropped with a warning.
            x_coarse: Outputs of the simulator a level below on the same theta and
                noise; they are trained on before x.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If they do not fit; nothing is stored then.
        """
        state = self._state
        new = LevelSimulations(1, theta, x, x_coarse)
        first = state.simulations[0] if state.simulations else new
        state.check_simulations(new, first, self._settings.prior)
        if self._settings.is_corrected:
            if state.pending is None:
                raise ValueError(
                    "theta was not proposed in this round. Call `propose()` first, or "
                    "use `Acquisition(correct=False)`."
                )
            weights = state.pending.weights_of(new.theta)
            new = replace(new, weights=weights.clamp_min(1e-12))[weights > 0]
        state.simulations.append(new)
        state.num_new += len(new)
        return self

    def train(self) -> list[ConditionalDensityEstimator]:
        """Train on the simulations that were appended, which ends the round.

        Networks are pre-trained first if that was not done. Then expected coverage is
        computed (see `summary`), and the networks are fine-tuned.

        Returns:
            The networks of the members.

        Raises:
            RuntimeError: If nothing was appended since the last training.
            ValueError: If the low-fidelity simulations are not those of earlier rounds.
        """
        state = self._state
        if state.num_new == 0:
            raise RuntimeError(
                "No high-fidelity simulations were appended since the last training. "
                "Simulate the parameters of `propose()` and call `append_simulations`."
            )
        self._pretrain()
        # found at most once, as it takes samples of the posterior
        region = cache(partial(self._proposer.region, state.index))
        coverage = self._coverage_of_round(region)
        low = self._trainer.low_fidelity
        low_weights = self._weigh(low, region)
        all_rounds = self._settings.all_rounds
        networks = self._trainer.fine_tune(
            state.networks,
            state.simulations if all_rounds else state.new_simulations,
            low,
            low_weights,
            state.index,
            self.x_o,
        )
        state.low_weights, state.low_sums = low_weights, sums_of(low)
        state.end_round(networks, coverage)
        return networks

    def build_posterior(self) -> DirectPosterior | EnsemblePosterior:
        """sbi's posterior of the members, with the observation as its default x.

        Raises:
            RuntimeError: If nothing was trained yet.
        """
        networks = self._state.networks
        if networks is None:
            raise RuntimeError("Nothing was trained yet. Call `train` or `run` first.")
        each = [DirectPosterior(network, self._settings.prior) for network in networks]
        posterior = EnsemblePosterior(each) if len(each) > 1 else each[0]
        return posterior.set_default_x(self.x_o)

    def expected_coverage(self, theta: Tensor, x: Tensor) -> Tensor:
        """Level of the smallest region of the posterior that holds each true theta.

        If the posterior is calibrated on the region of this round, levels are uniform
        on (0, 1): `(levels < 0.9).float().mean()` is the expected coverage of 90 %
        regions. Call it before `train`, which computes it at the simulations that were
        appended.

        Args:
            theta: Parameters that `propose` returned in this round, shape
                `(n, d_theta)`. Active points are left out.
            x: Outputs of the highest simulator, shape `(n, *x_shape)`.

        Returns:
            Levels, shape `(m,)`.

        Raises:
            RuntimeError: If nothing was trained or proposed yet.
        """
        if self._state.pending is None:
            raise RuntimeError(
                "Nothing was proposed in this round. Simulate the parameters of "
                "`propose()`, and pass both."
            )
        new = LevelSimulations(1, theta, x)
        self._state.check_x(new.x)
        new = new[self._state.pending.is_passive(new.theta)]
        region = self._proposer.region(self._state.index)
        return self._coverage_at(new.theta, new.x, region)

    # All rounds

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
        """Propose, simulate and train in all rounds.

        Args:
            simulator: The highest simulator, of theta and noise as in
                `simulate_multilevel`, or a pair `(coarse, fine)` to simulate both on
                the same theta and noise.
            num_simulations: High-fidelity simulations in all rounds together.
            num_rounds: Number of rounds.
            noise: Noise sampler, as in `simulate_multilevel`; seeds by default.
            simulation_batch_size: Simulations per call of a simulator, after which the
                state is saved.
            num_workers: Processes that simulate at the same time.
            max_resampling: Failed simulations (an exception, NaN or inf) of a round
                that may be replaced by others from the same proposal; as many as the
                round has by default.
            checkpoint: File to save the state to, after every batch of simulations and
                every training. If it exists, the run resumes from it.
            show_progress_bars: Whether to show progress.

        Returns:
            The posterior.

        Raises:
            RuntimeError: If more simulations fail than may be replaced.
            ValueError: If the checkpoint is of a run with other settings.
        """
        check_types(Rounds.run, locals())
        if num_rounds < 1 or num_simulations < 2 * num_rounds:
            raise ValueError(
                f"num_simulations={num_simulations} in num_rounds={num_rounds} rounds, "
                "but each round needs at least 2. Ask for fewer rounds."
            )
        (simulation_batch_size,) = per_level(simulation_batch_size, num_levels=1)
        if self._state.num_new > 0:
            raise RuntimeError(
                f"{self._state.num_new} simulations of this round were appended by "
                "hand. Call `train()` first, so that `run` begins with a new round."
            )
        if checkpoint is not None and Path(checkpoint).exists():
            self._resume(checkpoint)
        save = (lambda: None) if checkpoint is None else partial(self.save, checkpoint)
        if self._state.networks is None:
            self._pretrain()
            save()
        bar = tqdm(total=num_simulations, disable=not show_progress_bars)

        def after_batch() -> None:
            save()
            done, pending = sum(self.summary["num_simulations"]), self._state.pending
            bar.update(done + (len(pending.outputs) if pending else 0) - bar.n)

        coarse, fine = simulator if isinstance(simulator, tuple) else (None, simulator)
        work = Work((coarse, fine), noise)
        workers = simulation_batch_size, num_workers, max_resampling
        runner = Runner(work, *workers, checkpoint, after_batch)
        least, rest = divmod(num_simulations, num_rounds)
        with bar:
            while (index := self._state.index) < num_rounds:
                size = least + (index < rest)
                bar.set_description(f"Round {index + 1}")
                if self._state.pending is None:
                    self.propose(size)
                    save()
                assert self._state.pending is not None
                runner.simulate(
                    self._state.pending,
                    size,
                    partial(self._draw, is_active=False),
                    self._settings.seed_of(Stream.NOISE, index),
                    index,
                )
                self.append_simulations(*self._state.pending.done()).train()
                save()
        return self.build_posterior()

    def save(self, path: str | os.PathLike) -> None:
        """Write the state: networks, high-fidelity simulations, the current round.

        Low-fidelity simulations are not written: append the same ones to resume.

        Args:
            path: The file; it is replaced as a whole.
        """
        checkpoints.write(path, self._settings.saved(self.x_o), self._state)

    def load(self, path: str | os.PathLike) -> Self:
        """Resume from a state that `save` wrote.

        Args:
            path: The file. It is read without unpickling.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If it was written under other settings, or by another network,
                or holds something else; the object stays as it was then.
            OSError: If it cannot be read.
        """
        settings, state = self._settings, self._state
        saved, fields = checkpoints.read(path)
        checkpoints.check_settings(saved, settings.saved(self.x_o), path)
        weights, simulations = fields["networks"], fields["simulations"]
        template = state.networks[0] if state.networks else None
        with checkpoints.explained(path):
            if weights is not None:
                is_right = len(weights) == settings.num_members
                expect(is_right, f"it has {len(weights)} networks")
                fields["networks"] = [
                    self._trainer.network_from(each, self.x_o, template)
                    for each in weights
                ]
            for part in simulations:
                state.check_simulations(part, simulations[0], settings.prior)
            if fields["pending"] is not None:
                check_theta(fields["pending"].theta, settings.prior)
        self._state = replace(state, **fields)
        return self

    def _resume(self, path: str | os.PathLike) -> None:
        """Load a checkpoint, unless this object is further."""
        if self._state.index == 0 and self._state.pending is None:
            self.load(path)
        elif checkpoints.read(path)[1]["index"] != self._state.index:
            raise ValueError(
                f"checkpoint={str(path)!r} is of another round than this object. "
                "Resume from it in a new object, or name another file."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {
            "settings": self._settings,
            "state": self._state,
            "pretraining": trainer_state(self._trainer.pretraining),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        Rounds.__init__(self, saved["settings"], saved["state"].x_o)
        self._state = saved["state"]
        vars(self._trainer.pretraining).update(saved["pretraining"])

    # Parts of the steps

    def _pretrain(self) -> None:
        if self._state.networks is None and self._trainer.has_low_fidelity:
            self._state.networks = self._trainer.pretrain()
            self._state.is_pretrained = True

    def _draw(self, num: int, is_active: bool = True) -> Proposals:
        """Proposals of this round, from a seed of their own at each call."""
        state = self._state
        acquisition = self._settings.acquisition if is_active else None
        index, state.num_draws = state.num_draws, state.num_draws + 1
        if acquisition is not None and state.index == 0:
            if acquisition.first_round:
                self._pretrain()
            if state.networks is None or not acquisition.first_round:
                acquisition = None
        return self._proposer.draw(num, state.index, index, acquisition)

    def _weigh(
        self, low: LevelSimulations | None, region: Callable[[], Region]
    ) -> Tensor | None:
        """Weights that give low-fidelity simulations the density of all proposals."""
        state = self._state
        state.check_low_fidelity(low)
        if low is None or not self._trainer.aligns:
            return None
        before = state.low_weights
        if before is None or not self._settings.all_rounds:
            before = torch.zeros(len(low))
        return self._proposer.add_density(
            before, low.theta, state.num_new, state.pending, region()
        )

    def _coverage_of_round(self, region: Callable[[], Region]) -> list[float]:
        """Levels at new simulations, which the networks were not trained on."""
        state, num = self._state, self._settings.num_coverage_simulations
        if state.pending is None or state.networks is None or num == 0:
            return []
        theta = torch.cat([part.theta for part in state.new_simulations])
        x = torch.cat([part.x for part in state.new_simulations])
        chosen = state.pending.is_passive(theta).nonzero()[:num, 0]
        return self._coverage_at(theta[chosen], x[chosen], region()).tolist()

    def _coverage_at(self, theta: Tensor, x: Tensor, region: Region) -> Tensor:
        chosen = region.inside(theta)
        with seeded(self._settings.seed_of(Stream.COVERAGE, self._state.index)):
            posterior = self.build_posterior()
            return coverage_levels(posterior, theta[chosen], x[chosen], region.inside)
