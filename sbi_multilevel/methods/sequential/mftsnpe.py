r"""Truncated rounds with low-fidelity simulators (MF-TSNPE), and active learning (-AF).

For one observation :math:`x_o`: networks are pre-trained on low-fidelity rows, then in
each round high-fidelity rows are simulated from the prior truncated to where the
current posterior has its mass (`sbi_multilevel.methods.sequential.truncation`), and the
networks fine-tuned on all rounds so far, each from its weights of the round before.
With an ensemble, part of a round can be simulated where its members disagree
(`sbi_multilevel.methods.sequential.acquisition`).

This is Algorithm 3 (MF-TSNPE, one network) and Algorithm 4 (MF-TSNPE-AF, an ensemble
and an `Acquisition`) of Krouglova et al. (2026), Appendix M: all members start from one
pre-trained network, the first round draws from the prior, a fifth of each round are
the points of a pool, drawn once from the prior, with the largest acquisition function
(their equation 2), the prior is truncated to the region of highest probability of the
mean of the members, and no row is weighted. Where we depart from it:

*Rows of all rounds.* The algorithms write the loss of a round over the simulations of
that round. Their code trains on those of all rounds, and so do we: rows of earlier
rounds tell about the same posterior, and a round alone may have ten.
`all_rounds=False` takes those of the round.

*Expected coverage.* The algorithms compute it after each training without saying on
which simulations, and their code does not compute it. On rows that a network was
trained on it says little, and simulations made for it alone cost as much as others. So
the rows of a round, before they are trained on, test the networks that proposed them:
`summary["coverage"]` (`sbi_multilevel.methods.sequential.coverage`). Active points do not
count. The networks of the last round are tested on fresh simulations by
`expected_coverage`. `num_coverage_rows=0` leaves it out.

*Alignment.* Fine-tuning reads high-fidelity x at the scale of low-fidelity x, as
`MFNPE` does. `config=TransferConfig(alignment=None)` leaves x as it is.

*Failed simulations.* They are replaced by draws from the truncated prior, those at
active points, too, where the paper also takes the next active points (Appendix F): a
simulator that fails at one of these often fails near it. `max_resampling=0` stops
instead.

*Earlier versions of this package* had no active points in the first round (as the
authors' code), drew the pool in each round (likewise) and pre-trained each member on
other folds of the rows, so that members differ from the start:
`MFTSNPE(acquisition=Acquisition(first_round=False, fixed_pool=False),
shared_pretraining=False)`.

Reference: Krouglova, Johnson, Confavreux, Deistler, Gonçalves (2026), *Multifidelity
simulation-based inference for computationally expensive simulators*, ICLR 2026,
arXiv:2502.08416, Sections 3.1.2 and 3.1.3, Algorithms 3 and 4; Deistler, Gonçalves,
Macke (2022), *Truncated proposals for scalable and hassle-free simulation-based
inference*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.data.validation import check_level, check_observation
from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.checkpoint import SUMMARY
from sbi_multilevel.methods.sequential.rounds import Proposals
from sbi_multilevel.methods.sequential.running import RunMixin
from sbi_multilevel.methods.sequential.truncation import Truncation
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.simulation.arguments import check_seed
from sbi_multilevel.simulation.noise import derive_seed, seeded
from sbi_multilevel.training.config import check_config
from sbi_multilevel.utils.argument_types import check_types

_FILL = 15  # stream of seeds


class MFTSNPE(RunMixin):
    r"""Posterior of one observation, from rounds of simulations near it.

    Step by step, simulations made wherever you like: `propose`, `append_simulations`,
    `train`, and again; or, given the simulator, `run`. The object can be pickled
    between all of these steps.

    Args:
        prior: Prior over the parameters of the highest level.
        x_o: The observation, shape `x_shape` or `(1, *x_shape)`.
        density_estimator: Name of a network, or a builder, as for `MFNPE`.
        config: Settings of pre-training and fine-tuning. Levels are aligned over the
            same parameters: the moments of the high-fidelity rows are matched to those
            of low-fidelity rows weighted to the rounds' truncated priors. Without
            low-fidelity rows there is no alignment.
        num_members: Networks; more than one make an ensemble.
        acquisition: How active points are chosen; none by default. Needs two members.
        shared_pretraining: Whether all members start from one pre-trained network, or
            each from one of its own, trained on other folds of the low-fidelity rows.
        all_rounds: Whether networks are fine-tuned on the high-fidelity rows of all
            rounds, or on those of the last one.
        truncation: How the prior is truncated.
        num_coverage_rows: High-fidelity rows of a round, at most, at which expected
            coverage is computed.
        parameters: Names of the columns of theta of each level, as for `MFNPE`.
        seed: Seed of all that is drawn here. The same seed, rows and settings give the
            same posterior, in one go or resumed.
        num_workers: Processes that train members at the same time.
        train_options: Arguments of `MFNPE.train`.

    Attributes:
        summary: Lists with an entry a round: `num_simulations`, `acceptance_rate` (the
            share of the prior that is left), `num_active`, `failures` (what failed
            simulations said), and `coverage`: of each row that was drawn from the
            truncated prior, the level of the smallest region that holds its theta, by
            the networks before the training of the round. In the first round these are
            the pre-trained networks. `(torch.tensor(levels) < 0.9).float().mean()` is
            the expected coverage of 90 % regions.

    Raises:
        ValueError: If the observation has NaN, or the settings do not fit.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFTSNPE, Truncation
        >>> def dear(theta, noise):
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
        ...     dear,
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
        num_coverage_rows: int = 100,
        parameters: Mapping[int, Sequence[str]] | None = None,
        seed: int = 0,
        num_workers: int = 1,
        train_options: Mapping[str, Any] | None = None,
    ):
        check_types(MFTSNPE.__init__, locals(), but=("seed",))
        check_seed(seed)
        self._config = check_config(config, TransferConfig, {})
        correct = acquisition is not None and acquisition.correct
        if correct and truncation is not None and truncation.sample_with == "sir":
            raise ValueError(
                "Acquisition(correct=True) needs the acceptance rate of the truncated "
                "prior, which sample_with='sir' does without. Use one of them."
            )
        if num_members < 1 or (acquisition is not None and num_members < 2):
            raise ValueError(
                f"num_members is {num_members}, but must be >= 1, and >= 2 for an "
                "acquisition, which looks at where members disagree."
            )
        if num_coverage_rows < 0:
            raise ValueError(
                f"num_coverage_rows must be >= 0, but is {num_coverage_rows}."
            )
        self.x_o = check_observation(x_o)
        self._prior, self._density_estimator = prior, density_estimator
        self._num_members, self._acquisition = num_members, acquisition
        self._shared_pretraining, self._all_rounds = shared_pretraining, all_rounds
        self._truncation = truncation or Truncation()
        self._num_coverage_rows = num_coverage_rows
        self._seed, self._num_workers = seed, num_workers  # of training
        self._train_options = {"force_first_round_loss": True, **(train_options or {})}
        self._parameters = parameters
        self._low = self._trainer(self._config, parameters)
        self._low_sums: tuple[float, ...] | None = None
        self._members: list[ConditionalDensityEstimator] | None = None
        self._pretrained_here = False
        self._rows: list[LevelSimulations] = []
        self._new_rows, self._round, self._num_drawn = 0, 0, 0
        self._low_weights: Tensor | None = None
        self._pending: Proposals | None = None
        self.summary: dict[str, list] = {name: [] for name in SUMMARY}

    def append_lowfidelity_simulations(
        self, theta: Tensor, x: Tensor, level: int = 0
    ) -> Self:
        """Store rows of a cheaper simulator, drawn from the prior, for pre-training.

        Args:
            theta: Parameters drawn from the prior, shape `(n, d_theta)`, or, where
                `parameters` were given, the columns of this level.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            level: Level of the rows; the highest level is above all of these.

        Returns:
            The same object (so that calls can be chained).

        Raises:
            ValueError: If the rows do not fit, or networks were pre-trained already.
        """
        if self._round > 0 or self._pretrained_here:
            when = "the first round" if self._round > 0 else "pre-training"
            raise ValueError(
                f"Low-fidelity rows were appended after {when}. Append all of them "
                "before `train` or `run`, or, with an acquisition, before `propose`; "
                "or start from scratch in a new object."
            )
        check_level(level)
        self._check_x(x)
        entry = len(self._low._theta_roundwise)
        with seeded(derive_seed(self._seed, _FILL, level, entry)):  # missing columns
            self._low.append_lowfidelity_simulations(theta, x, level)
        return self

    def warm_start(
        self,
        estimators: ConditionalDensityEstimator | Sequence[ConditionalDensityEstimator],
    ) -> Self:
        """Start from networks that were pre-trained elsewhere.

        Low-fidelity rows that are appended, too, are not trained on then, but levels
        are aligned by them.

        Args:
            estimators: One for all members, or one for each, e.g. those of
                `train_ensemble(...).estimators`.

        Raises:
            ValueError: If their number does not fit, or their shapes do not.
        """
        check_types(MFTSNPE.warm_start, locals())
        if isinstance(estimators, ConditionalDensityEstimator):
            estimators = [estimators] * self._num_members
        if len(estimators) != self._num_members:
            raise ValueError(
                f"estimators are {len(estimators)}, but num_members is "
                f"{self._num_members}. Pass one, or one for each member."
            )
        self._members = [self._take_over(estimator) for estimator in estimators]
        return self
