r"""Truncated sequential NPE with several fidelities (MF-TSNPE, MF-TSNPE-AF).

For one observation :math:`x_o`, networks are pre-trained on low-fidelity simulations.
In each round high-fidelity simulations are drawn from the prior truncated to the region
of highest density of the current posterior
(`sbi_multilevel.methods.sequential.truncation`), and the networks are fine-tuned on the
simulations of all rounds, from their weights of the round before. With an ensemble,
part of a round can be simulated where its members disagree
(`sbi_multilevel.methods.sequential.acquisition`).

This is Algorithm 3 (MF-TSNPE, one network) and Algorithm 4 (MF-TSNPE-AF, an ensemble
with an `Acquisition`) of Krouglova et al. (2026), Appendix M. All members start from
one pre-trained network, and the first round draws from the prior. A fifth of each
round are the points with the largest acquisition function (their equation 2) in a pool
that is drawn once from the prior. The prior is truncated by the mean of the members,
and simulations are not weighted. The differences are:

*Simulations of all rounds.* The algorithms write the loss of a round over the
simulations of that round. Their code trains on those of all rounds, as is done here by
default, since a round alone may have ten. `all_rounds=False` uses those of the round.

*Expected coverage.* The algorithms compute it after each training and leave open at
which simulations; their code does not compute it. Here the simulations of a round,
before they are trained on, test the networks that proposed them: `summary["coverage"]`
(`sbi_multilevel.methods.sequential.coverage`). Active points are left out. The networks
of the last round are tested on further simulations by `expected_coverage`.
`num_coverage_simulations=0` turns it off.

*Alignment.* Fine-tuning reads high-fidelity x at the scale of low-fidelity x, as in
`MFNPE`. `config=TransferConfig(alignment=None)` leaves x as it is.

*Failed simulations.* They are replaced by draws from the truncated prior, also those at
active points, for which the paper takes the next active points (Appendix F): a
simulator that fails at one of these often fails near it. `max_resampling=0` raises an
error instead.

*Earlier versions of this package* had no active points in the first round and drew the
pool in each round, both as in the authors' code, and pre-trained each member on other
folds of the simulations. `MFTSNPE(acquisition=Acquisition(first_round=False,
fixed_pool=False), shared_pretraining=False)` restores this.

Reference: Krouglova, Johnson, Confavreux, Deistler, Gonçalves (2026), *Multifidelity
simulation-based inference for computationally expensive simulators*, ICLR 2026,
arXiv:2502.08416, Sections 3.1.2 and 3.1.3, Algorithms 3 and 4; Deistler, Gonçalves,
Macke (2022), *Truncated proposals for scalable and hassle-free simulation-based
inference*.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sbi.inference import DirectPosterior, EnsemblePosterior
from torch import Tensor

from sbi_multilevel.data.validation import check_observation
from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.fine_tuning_rounds import FineTuningRounds
from sbi_multilevel.methods.sequential.rounds import Runner
from sbi_multilevel.methods.sequential.settings import FineTuningSettings
from sbi_multilevel.methods.sequential.truncation import Truncation
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.simulation.arguments import check_seed, per_level
from sbi_multilevel.simulation.noise import NoiseSampler, Simulator
from sbi_multilevel.simulation.tasks import Work
from sbi_multilevel.training.config import check_config
from sbi_multilevel.utils.argument_types import check_types


class MFTSNPE(FineTuningRounds):
    r"""Multifidelity truncated sequential NPE: the posterior of one observation.

    Call `propose`, `append_simulations` and `train` in each round, with simulations
    made anywhere; or `run`, with the simulator. The object can be pickled between these
    steps.

    Args:
        prior: Prior over the parameters of the highest level.
        x_o: The observation, shape `x_shape` or `(1, *x_shape)`.
        density_estimator: Name of a network, or a builder, as for `MFNPE`.
        config: Settings of pre-training and fine-tuning. Levels are aligned over the
            same parameters: the moments of high-fidelity x are matched to those of
            low-fidelity x, with weights that give low-fidelity simulations the density
            of the proposals. Without low-fidelity simulations there is no alignment.
        num_members: Number of networks; more than one make an ensemble.
        acquisition: How active points are chosen; none by default. Needs two members.
        shared_pretraining: Whether all members start from one pre-trained network, or
            each from its own, trained on other folds of the low-fidelity simulations.
        all_rounds: Whether networks are fine-tuned on the high-fidelity simulations of
            all rounds, or on those of the current round.
        truncation: How the prior is truncated.
        num_coverage_simulations: High-fidelity simulations of a round, at most, at
            which expected coverage is computed.
        parameters: Names of the columns of theta of each level, as for `MFNPE`.
        seed: Seed of all random numbers here. The same seed, simulations and settings
            give the same posterior, also after resuming.
        num_workers: Processes that train members at the same time.
        train_options: Arguments of `MFNPE.train`.

    Attributes:
        summary: Lists with an entry per round: `num_simulations`, `acceptance_rate`
            (share of prior draws in the truncated region), `num_active`, `failures`
            (error messages of failed simulations), and `coverage`: for each simulation
            from the truncated prior the level of the smallest region that holds its
            theta, by the networks before the training of the round. In the first round
            these are the pre-trained networks. `(torch.tensor(levels) <
            0.9).float().mean()` is the expected coverage of 90 % regions.

    Raises:
        TypeError: If `config` is that of another method.
        ValueError: If the observation has NaN, or the settings do not fit.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFTSNPE, Truncation
        >>> def simulate(theta, noise):
        ...     return theta + 0.1 * theta**2 + 0.3 * noise
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> theta = prior.sample((300,))
        >>> inference = MFTSNPE(
        ...     prior,
        ...     torch.zeros(2),
        ...     density_estimator="mdn",
        ...     truncation=Truncation(num_samples=1_000),
        ...     train_options={"max_num_epochs": 2},
        ... )
        >>> inference = inference.append_lowfidelity_simulations(
        ...     theta, theta + 0.3 * torch.randn(300, 2)
        ... )
        >>> posterior = inference.run(
        ...     simulate,
        ...     num_simulations=40,
        ...     num_rounds=2,
        ...     noise=lambda n, generator: torch.randn(n, 2, generator=generator),
        ...     show_progress_bars=False,
        ... )
        >>> posterior.sample((10,), show_progress_bars=False).shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        prior: Any,
        x_o: Tensor,
        density_estimator: Any = "nsf",
        *,
        config: TransferConfig | None = None,
        num_members: int = 1,
        acquisition: Acquisition | None = None,
        shared_pretraining: bool = True,
        all_rounds: bool = True,
        truncation: Truncation | None = None,
        num_coverage_simulations: int = 100,
        parameters: Mapping[int, Sequence[str]] | None = None,
        seed: int = 0,
        num_workers: int = 1,
        train_options: Mapping[str, Any] | None = None,
    ):
        check_types(MFTSNPE.__init__, locals(), but=("seed",))
        check_seed(seed)
        settings = FineTuningSettings(
            prior=prior,
            density_estimator=density_estimator,
            config=check_config(config, TransferConfig, {}),
            num_members=num_members,
            acquisition=acquisition,
            shared_pretraining=shared_pretraining,
            all_rounds=all_rounds,
            truncation=truncation or Truncation(),
            num_coverage_simulations=num_coverage_simulations,
            parameters=parameters,
            seed=seed,
            num_workers=num_workers,
            train_options={"force_first_round_loss": True, **(train_options or {})},
        )
        super().__init__(settings, check_observation(x_o))

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
        check_types(MFTSNPE.run, locals())
        if num_rounds < 1 or num_simulations < 2 * num_rounds:
            raise ValueError(
                f"num_simulations={num_simulations} in num_rounds={num_rounds} rounds, "
                "but each round needs at least 2. Ask for fewer rounds."
            )
        batches = per_level(simulation_batch_size, num_levels=1) * 2
        if (num_new := self._state.num_appended) > 0:
            raise RuntimeError(
                f"{num_new} simulations of this round were appended by hand. Call "
                "`train()` first, so that `run` begins with a new round."
            )
        if checkpoint is not None and Path(checkpoint).exists():
            self._resume(checkpoint)
        if self._state.networks is None:
            self._pretrain()
            if checkpoint is not None:
                self.save(checkpoint)
        coarse, fine = simulator if isinstance(simulator, tuple) else (None, simulator)
        work, show = Work((coarse, fine), noise), show_progress_bars
        runner = Runner(work, batches, num_workers, max_resampling, checkpoint, show)
        least, rest = divmod(num_simulations, num_rounds)

        def sizes() -> dict[int, int]:
            index = self._state.index
            return {1: least + (index < rest)} if index < num_rounds else {}

        def done() -> int:
            simulated = sum(len(each.outputs) for each in self._state.pending.values())
            return sum(self.summary["num_simulations"]) + simulated

        self._simulate_rounds(runner, sizes, num_simulations, done)
        return self.build_posterior()

    def _resume(self, path: str | os.PathLike) -> None:
        """Load a checkpoint, unless this object is further."""
        if self._state.index == 0 and not self._state.pending:
            self.load(path)
        elif self._read(path)["counters"][1] != self._state.index:
            raise ValueError(
                f"checkpoint={str(path)!r} is of another round than this object. "
                "Resume from it in a new object, or name another file."
            )
