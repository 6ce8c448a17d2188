"""A trainer of a hybrid ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from sbi.inference.trainers._contracts import (
    LossArgs,
    StartIndexContext,
    TrainConfig,
)
from torch import Tensor
from typing_extensions import Self

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.data.validation import check_same_shapes
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.hybrid.summary import HybridSummary
from sbi_multilevel.training.network import WarmStart
from sbi_multilevel.training.trainer import MultilevelTrainer

if TYPE_CHECKING:
    from sbi_multilevel.estimators.mixture import MixtureEstimator
    from sbi_multilevel.level_maps.tail_transform import TailTransform
    from sbi_multilevel.methods.hybrid.run import HybridRun

MIN_SIMULATIONS = 4
_ONE_LEVEL = (
    "estimate_gain was called, but there is one level only. Append simulations of a "
    "lower level, and train."
)
# arguments of `train` that members are trained with, too
_MEMBER_OPTIONS = (
    "learning_rate",
    "validation_fraction",
    "stop_after_epochs",
    "max_num_epochs",
    "clip_max_norm",
)


class HybridTrainer(MultilevelTrainer):
    """Trains the members of a hybrid ensemble and returns their mixture.

    `hybrid_summary` reports what was chosen; it is `None` before training.
    """

    _config: HybridConfig
    _config_type = HybridConfig
    _member_type: ClassVar[type[MultilevelTrainer]]

    _needs_one_network: ClassVar[bool] = False  # if there is no estimator of mixtures
    _max_distilled: ClassVar[int | None] = None  # conditions to distill at, at most
    _max_checked: ClassVar[int] = 2_000  # those at which the result is compared

    hybrid_summary: HybridSummary | None = None
    _run: HybridRun | None = None
    _map_pairs: tuple[LevelSimulations, ...] = ()

    @property
    def _distills(self) -> bool:
        """Whether one network is trained on draws from the mixture."""
        return bool(self._config.distill)

    def _mix(
        self,
        networks: Sequence[Any],
        weights: Tensor,
        tails: TailTransform | None,
        has_prior: bool,
    ) -> Any:
        """The mixture of trained networks.

        Args:
            networks: The networks.
            weights: Weight of each; with the prior, its weight last.
            tails: Transform of the tails of x.
            has_prior: Whether the prior is a component.
        """
        # imported here, as it brings level maps with it
        from sbi_multilevel.estimators.mixture import MixtureEstimator

        densities = [self._as_density(network) for network in networks]
        prior = self._prior if has_prior else None
        return MixtureEstimator(densities, weights, self._target, tails, prior)

    def _as_density(self, network: Any) -> Any:
        """A trained network as a density estimator."""
        return network

    def _network_of(self, density: Any) -> Any:
        """The network of what `_as_density` returned."""
        return density

    def _in_place_of(self, mixture: MixtureEstimator, network: Any) -> Any:
        """What is returned if one network takes the place of those of a mixture."""
        of_networks = mixture.member_weights
        of_prior = mixture.weights[len(of_networks) :]
        weights = torch.cat([of_networks.sum()[None], of_prior])
        return self._mix([network], weights, mixture.tails, len(of_prior) > 0)

    def append_map_simulations(
        self, theta: Tensor, x: Tensor, x_coarse: Tensor, level: int
    ) -> Self:
        """Store pairs that level maps are fitted to, and nothing else is trained on.

        Theta may lie outside of the support of the prior, e.g. of a truncated prior.
        Kinds of level map that are local, as Gaussian processes are, are fitted to them
        as well.

        Args:
            theta: Parameters, shape `(n, d_theta)`.
            x: Outputs of the simulator of `level`, shape `(n, *x_shape)`.
            x_coarse: Outputs of the simulator of `level - 1` at the same theta and
                noise, shape `(n, *x_shape)`.
            level: Their level, at least 1.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            ValueError: If they do not fit each other, or there are such pairs already.
        """
        if level < 1:
            raise ValueError(
                f"level={level} was passed, but pairs are of level 1 or above. Pass "
                "the level of x."
            )
        if level in {part.level for part in self._map_pairs}:
            raise ValueError(
                f"Pairs of level={level} were appended to fit maps before. Pass all of "
                "them at once, to a new trainer."
            )
        pairs = LevelSimulations(level, theta, x, x_coarse)
        self._map_pairs = (*self._map_pairs, pairs)
        return self

    def estimate_gain(self) -> HybridSummary:
        """Estimate the contribution of the lower levels, after training.

        As many networks as the mixture has members are trained on half of the
        high-fidelity simulations, and level maps are scored with shuffled outputs of
        the lower levels. The posterior does not change.

        Returns:
            The summary with `effective_sample_size` and `outputs`; it is also stored in
            `hybrid_summary`.

        Raises:
            ValueError: If the trainer is not trained, has no lower levels, or got more
                simulations since.
        """
        self._check_builder()
        run, summary = self._run, self.hybrid_summary
        # one level alone is trained on as the parent does
        if not self._is_multilevel and self._neural_net is not None:
            raise ValueError(_ONE_LEVEL)
        if run is None or summary is None or not run.has_ended:
            raise ValueError("estimate_gain was called before training. Call `train`.")
        if len(run.num_simulations) < 2:
            raise ValueError(_ONE_LEVEL)
        simulations = self._prepared_simulations()
        if simulations.num_simulations != run.num_simulations:
            raise ValueError(
                f"estimate_gain was called after training on {run.num_simulations} "
                f"simulations, but {simulations.num_simulations} have been appended. "
                "Call `train` again."
            )
        # imported here, as it brings level maps and scikit-learn with it
        from sbi_multilevel.methods.hybrid.training import estimate_gain

        size, outputs = estimate_gain(self, simulations, run)
        summary = replace(summary, effective_sample_size=size, outputs=outputs)
        self.hybrid_summary = summary
        return summary

    def __getstate__(self) -> dict[str, Any]:
        """As the parent, which leaves out what a further training would need."""
        return {**super().__getstate__(), "_run": None}

    def warm_start(self, source: WarmStart) -> Self:
        """Not available: members start from networks trained on mapped simulations.

        Args:
            source: An estimator or weights.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "warm_start was called, but a hybrid trains all its networks on mapped "
            "simulations. Use a transfer trainer (`MFNPE`, `MFNLE`)."
        )

    def _check_trainable(self) -> MultilevelSimulations:
        simulations = super()._check_trainable()
        self._check_builder()
        for pairs in self._map_pairs:
            check_same_shapes(pairs, simulations[-1])
            if pairs.level > simulations[-1].level:
                raise ValueError(
                    f"level={pairs.level} was passed to append_map_simulations, but "
                    f"the highest level is {simulations[-1].level}. Pass the level "
                    "that these pairs are of."
                )
        high = simulations[-1]
        if high.level in self._appended.low_fidelity:
            raise ValueError(
                f"Only lower levels were appended, up to level {high.level}. Append "
                "simulations of the highest level by `append_simulations`, or pairs."
            )
        if len(high) < MIN_SIMULATIONS:
            raise ValueError(
                f"The highest level has {len(high)} simulations, but a hybrid needs at "
                f"least {MIN_SIMULATIONS}, as it holds some out twice. Simulate more, "
                "or use a transfer trainer (`MFNPE`, `MFNLE`)."
            )
        return simulations

    def _get_start_index(self, context: StartIndexContext) -> int:
        """As the parent; members are trained from scratch by every call of `train`.

        After an interruption `resume_training=True` continues with the networks that
        are missing, with the arguments of the first call.

        NPE of sbi requires `force_first_round_loss=True` to treat draws from a proposal
        as draws from the prior. Here all are draws from the prior, as
        `_check_trainable` ensures.
        """
        if self._is_multilevel:
            if context.resume_training and (self._run is None or self._run.has_ended):
                raise ValueError(
                    "resume_training=True was passed, but no training of this hybrid "
                    "was interrupted. Leave it out: `train()` trains from scratch on "
                    "all simulations appended so far."
                )
            context = replace(context, force_first_round_loss=True)
        return super()._get_start_index(context)  # pyright: ignore[reportAbstractUsage]

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int, *simulations: Any
    ) -> None:
        if self._is_multilevel:
            return  # members build theirs, on mapped simulations
        super()._initialize_neural_network(
            retrain_from_scratch, start_idx, *simulations
        )

    def _train_levels(
        self,
        train_config: TrainConfig,
        loss_args: LossArgs | None,
        summarization_kwargs: dict[str, Any] | None,
    ) -> Any:
        """Train the members, from scratch whenever it is called."""
        if self.hybrid_summary is None:
            self._neural_net = None  # an interrupted training leaves no network
        # imported here, as it brings level maps and scikit-learn with it
        from sbi_multilevel.methods.hybrid.run import HybridRun
        from sbi_multilevel.methods.hybrid.training import train_hybrid

        layout = self._layout
        options = {name: getattr(train_config, name) for name in _MEMBER_OPTIONS}
        options["training_batch_size"] = layout.batch_size
        options["dataloader_kwargs"] = layout.loader_options
        # a `calibration_kernel` is given x with transformed tails
        options.update(self._options_of(loss_args))
        run, counts = self._run, layout.simulations.num_simulations
        if run is None or not train_config.resume_training:
            run = HybridRun(int(torch.randint(2**31, ())), options, counts)
        elif run.num_simulations != counts:
            raise ValueError(
                f"resume_training=True was passed to continue on {counts} simulations, "
                f"but training began on {run.num_simulations}. Leave it out."
            )
        self._run = run
        network, summary, self._run = train_hybrid(self, layout.simulations, run)
        self._neural_net, self.hybrid_summary = network, summary
        self._summary["epochs_trained"].append(summary.num_epochs)
        first = next(iter(summary.log_scores))
        self._summary["best_validation_loss"].append(-summary.log_scores[first])
        for name, score in summary.log_scores.items():
            self._tracker.log_metric(f"held_out_log_score/{name}", score)
            self._tracker.log_metric(f"weight/{name}", summary.weights.get(name, 0.0))
        if train_config.show_train_summary:
            print(summary)
        return network
