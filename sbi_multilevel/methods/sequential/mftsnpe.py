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

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sbi_multilevel.data.validation import check_observation
from sbi_multilevel.methods.npe import MFNPE
from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.rounds import Rounds
from sbi_multilevel.methods.sequential.settings import RoundSettings
from sbi_multilevel.methods.sequential.truncation import Truncation
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.simulation.arguments import check_seed
from sbi_multilevel.training.config import check_config
from sbi_multilevel.utils.argument_types import check_types


class MFTSNPE(Rounds):
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

    _member_type = MFNPE

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
        settings = RoundSettings(
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
