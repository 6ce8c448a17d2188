"""What makes a single-level trainer of sbi one of several levels.

`MultilevelTrainer` precedes a trainer of sbi in the method resolution order and
overrides what involves more than one level: the simulations (`AppendingTrainer`), the
batches and the network, here, and the training loop (`StagedTrainer`). All else, from
the loss of a simulation to the posterior, is the parent's. With `append_simulations`
alone every method calls the parent's at once.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sbi.inference.trainers._contracts import LossArgs
from sbi.neural_nets.estimators import MixedDensityEstimator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import Self

from sbi_multilevel.data.priors import (
    check_inside,
    check_prior,
    has_support,
    transform_of,
)
from sbi_multilevel.data.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    Target,
)
from sbi_multilevel.estimators.kinds import DENSITY, NetworkKind
from sbi_multilevel.estimators.mixed import find_mixed, num_unaligned, probe_mixed
from sbi_multilevel.estimators.observations import (
    Watch,
    WatchedEstimator,
)
from sbi_multilevel.estimators.transformed import (
    Builder,
    CheckedBuilder,
    mapped_builder,
)
from sbi_multilevel.training.appending import AppendingTrainer
from sbi_multilevel.training.batches import LevelSplit, TermDataset
from sbi_multilevel.training.config import MethodConfig, check_config
from sbi_multilevel.training.loop import StagedTrainer
from sbi_multilevel.training.network import (
    WarmStart,
    moments_of,
    read_weights,
    start_from,
    with_spread,
)
from sbi_multilevel.training.plan import Layout, TrainingPlan
from sbi_multilevel.training.schedule import OneCycle
from sbi_multilevel.utils.argument_types import check_types


class MultilevelTrainer(StagedTrainer):
    """Trains a network of sbi on simulations of several levels.

    Args:
        config: The settings of the method; its defaults if `None`.
        parameters: Names of the columns of theta that each level has, the highest
            included, where levels differ, e.g. `{0: ("mu",), 1: ("mu", "sigma")}`. See
            `sbi_multilevel.data.parameters`.

    All other arguments are those of the parent.
    """

    _target: ClassVar[Target]
    _config_type: ClassVar[type[MethodConfig]]
    _kind: ClassVar[NetworkKind] = DENSITY
    _schedule: ClassVar[OneCycle | None] = None  # of the default settings, if any
    # the potential that checks observations, where the network is not given them
    _watched_potential: ClassVar[type | None] = None

    def __init__(
        self,
        *args: Any,
        config: MethodConfig | None = None,
        parameters: Mapping[int, Sequence[str]] | None = None,
        **kwargs: Any,
    ):
        if config is None and self._schedule is not None:
            config = type(self)._config_type(schedule=self._schedule)
        self._config = check_config(config, type(self)._config_type, kwargs)
        self._plan = TrainingPlan()
        given = inspect.signature(type(self)).bind(*args, **kwargs).arguments
        check_prior(given.get("prior"))
        network = given.get(self._kind.argument, self._kind.default)
        self._kind.check(network)
        self._is_named = isinstance(network, str)
        super().__init__(*args, parameters=parameters, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the parent's arguments beside ours in `help` and in editors."""
        super().__init_subclass__(**kwargs)
        following = cls.__mro__[cls.__mro__.index(AppendingTrainer) + 1 :]
        parent = next(base for base in following if "__init__" in vars(base))
        own = inspect.signature(MultilevelTrainer).parameters
        added = (own["config"], own["parameters"])
        parameters = [*inspect.signature(parent).parameters.values(), *added]
        cls.__signature__ = inspect.Signature(parameters)

    def warm_start(self, source: WarmStart) -> Self:
        """Start training from weights that were trained before, by any trainer of sbi.

        Args:
            source: An estimator, as `train` of a trainer of sbi returns it (it is
                copied), its `state_dict()`, or a file written by
                `torch.save(estimator.state_dict(), path)`, which is read without
                unpickling.

        Returns:
            The trainer (so that calls can be chained).

        Raises:
            TypeError: If `source` is something else.
            ValueError: If the trainer was trained already, the method cannot start from
                weights, or the file holds something else.
        """
        check_types(MultilevelTrainer.warm_start, locals())
        if self._neural_net is not None:
            raise ValueError(
                "warm_start was called after training. Call it before, on a new "
                "trainer with the same simulations."
            )
        if isinstance(source, (str, os.PathLike)):
            source = read_weights(source)
        self._plan.warm_start = source
        return self

    # Simulations and batches

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict | None = None,
    ) -> tuple[DataLoader, DataLoader]:
        """Return loaders of batches of `training_batch_size` over all terms.

        Arguments are those of the parent. With simulations of several levels a batch is
        `(theta, x, prior_masks, weight, term)`, see `sbi_multilevel.training.batches`,
        and the loaders are those of the first stage; a batch size of at least the
        number of all simulations (a pair counting as two) is full batch.
        """
        plan, config = self._plan, self._config
        if not self._is_multilevel:
            return super().get_dataloaders(
                starting_round,
                training_batch_size,
                validation_fraction,
                resume_training,
                dataloader_kwargs,
            )
        simulations = self._prepared_simulations()
        # draws from networks may lie outside of the support
        if self._is_unconstrained and plan.prepares:
            for level in simulations:
                check_inside(self._prior, level)
        if not resume_training or plan.split is None:
            plan.split = LevelSplit.random(
                simulations.num_simulations,
                validation_fraction if config.early_stopping else 0.0,
                plan.fold,
                config.min_held_out,
                config.max_held_out,
            )
            plan.split.check()
        network = plan.warm_start if self._neural_net is None else self._neural_net
        moments = moments_of(network, simulations[-1].x)

        def unaligned() -> int:
            highest = simulations[-1]
            return num_unaligned(self._find_mixed(highest), highest.x)

        dataset = TermDataset.of(simulations, plan.split, config, moments, unaligned)
        stages = config.stages(len(simulations), plan.warm_start is not None)
        plan.layout = Layout(
            simulations,
            dataset,
            stages,
            training_batch_size,
            dataloader_kwargs or {},
            plan.split,
        )
        self.train_indices = dataset.indices(plan.split.train, stages[0].terms)
        self.val_indices = dataset.indices(plan.split.validation, stages[0].terms)
        return plan.layout.loaders(stages[0])

    def _split(
        self, num_examples: int, validation_fraction: float
    ) -> tuple[Tensor, Tensor]:
        """As the parent, or the indices of a fold, for simulations of one level."""
        fold = self._plan.fold
        if fold is None:
            return super()._split(num_examples, validation_fraction)
        split = LevelSplit.random([num_examples], validation_fraction, fold)
        return split.train[0], split.validation[0]

    def _prepared_simulations(self) -> MultilevelSimulations:
        """All simulations as the method uses them, prepared for training."""
        is_new = self._neural_net is None
        return self._plan.prepare(self._check_trainable(), self._target, is_new)

    # Network

    @property
    def _is_unconstrained(self) -> bool:
        """Whether the network is one of theta in unconstrained space."""
        config = self._config
        if not (config.maps_estimator and self._kind.is_density):
            return False
        is_wanted = config.unconstrained
        if is_wanted is None:
            is_wanted = self._is_named
        return self._target == "theta" and is_wanted and has_support(self._prior)

    @property
    def _network_builder(self) -> Builder:
        """The builder that the method asks for, around the user's own."""
        build, target, kind = self._build_neural_net, self._target, self._kind
        if not self._config.maps_estimator:
            return CheckedBuilder(build, target, kind)
        prior = self._prior if self._is_unconstrained else None
        return mapped_builder(build, target, prior, kind)

    def _find_mixed(self, level: LevelSimulations) -> MixedDensityEstimator | None:
        """The estimator of discrete and continuous x; `None` if there is none."""
        if self._target != "x":
            return None  # one of theta may be mixed, too
        for network in (self._neural_net, self._plan.warm_start):
            if isinstance(network, nn.Module):
                return find_mixed(network)
        if self._build_neural_net is None:
            return None
        build = CheckedBuilder(self._build_neural_net, self._target, self._kind)
        return probe_mixed(build, level)

    def _check_builder(self) -> None:
        """Raise if a network has to be built, but the trainer was pickled."""
        if self._build_neural_net is None:
            name, argument = type(self).__name__, self._kind.argument
            raise ValueError(
                f"The trainer was pickled, and sbi leaves {argument} out of the "
                "pickle: a network cannot be built. Make a new trainer, "
                f"`{name}(prior, {argument}=...)`, and append the simulations to it: "
                "those kept, or `multilevel_simulations` of this trainer."
            )

    def _initialize_neural_network(
        self,
        retrain_from_scratch: bool,
        start_idx: int,
        theta: Tensor | None = None,
        x: Tensor | None = None,
    ) -> None:
        """Build the network on the simulations of the first stage, for z-scoring."""
        initialize = super()._initialize_neural_network
        is_new = self._neural_net is None or retrain_from_scratch
        if is_new:
            self._check_builder()
        if not self._is_multilevel:
            initialize(retrain_from_scratch, start_idx, theta, x)
            return
        source, builder = self._plan.warm_start, self._network_builder
        theta, x = self._layout.dataset.columns
        if is_new and source is not None:
            columns = (each[self.train_indices].cpu() for each in (theta, x))
            self._neural_net = start_from(source, builder, self._target, *columns)
            return
        x = with_spread(x, self.train_indices)
        users_builder = self._build_neural_net
        self._build_neural_net = builder
        try:
            initialize(retrain_from_scratch, start_idx, theta, x)
        finally:
            self._build_neural_net = users_builder

    # Loss

    def _options_of(self, loss_args: LossArgs | None) -> dict[str, Any]:
        """The arguments of `train` that belong to the loss; sbi's defaults left out."""
        kernel = getattr(loss_args, "calibration_kernel", None)
        # that of sbi refers to this trainer; others make their own
        is_default = (getattr(kernel, "__module__", None) or "").startswith("sbi.")
        if kernel is None or is_default:
            return {}
        return {"calibration_kernel": kernel}

    def _held_out_losses(self, network: Any, theta: Tensor, x: Tensor) -> Tensor:
        """Negative log density of simulations under a trained network."""
        given = (theta, x) if self._target == "theta" else (x, theta)
        return network.loss(*given)

    # Posterior

    @property
    def _watch(self) -> Watch | None:
        """Checks observations; `None` if training was that of the parent."""
        if not self._is_multilevel or self._plan.training_range is None:
            return None
        return Watch(self._plan.training_range)

    def _watched(self, estimator: Any, watch: Watch) -> Any:
        """An estimator that checks the observations it is given."""
        if self._watched_potential is not None:
            return estimator
        return WatchedEstimator(estimator, watch)

    def _get_potential_function(self, prior: Any, estimator: Any) -> Any:
        """As the parent; the potential may check the observations it is given."""
        potential, transform = super()._get_potential_function(  # pyright: ignore[reportAbstractUsage]
            prior, estimator
        )
        watch, watched = self._watch, self._watched_potential
        if watch is not None and watched is not None:
            potential = watched(estimator, prior, potential.device, watch)
        return potential, transform

    def _create_posterior(
        self, estimator: Any, prior: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As the parent; the network checks the observations it is given."""
        watch = self._watch
        if watch is not None:
            estimator = self._watched(estimator, watch)
        try:
            return super()._create_posterior(estimator, prior, *args, **kwargs)
        except AssertionError:
            transform_of(prior)  # names the fault of the prior
            raise
