"""The state of rounds of several levels: how it is trained on, and its file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from sbi_multilevel.data.preparation import without_extremes
from sbi_multilevel.data.simulations import LevelSimulations, merge_levels, merged
from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.estimators.observations import TrainingRange, Watch
from sbi_multilevel.estimators.reading import without_x_map
from sbi_multilevel.level_maps.tail_transform import TailTransform
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.hybrid.summary import HybridSummary
from sbi_multilevel.methods.hybrid.trainer import MIN_SIMULATIONS, HybridTrainer
from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.settings import MultilevelSettings
from sbi_multilevel.methods.sequential.state import RoundState
from sbi_multilevel.methods.sequential.truncated_prior import (
    Cut,
    TruncatedPrior,
    component_of,
)
from sbi_multilevel.utils.files import check_state_dict, expect

_ENDS = 3  # entries of a cut in a file of an earlier version
_ENTRIES = {"members", "weights", "tails", "has_prior"}  # of a mixture in a file


@dataclass(frozen=True, eq=False)
class RoundFit:
    """What a round learned.

    Args:
        estimator: The density of theta, or of x.
        log_score: Mean log density of held-out high-fidelity simulations under the best
            component, NaN if the method has none.
        best: Weights of its members that are those of this component, shape `(k,)`.
    """

    estimator: MixtureEstimator
    log_score: float
    best: Tensor


@dataclass(eq=False, kw_only=True)
class MultilevelState(RoundState):
    """Where a run of rounds of several levels stands.

    Args:
        prior: The prior in the region of the current round.
        fits: What each round learned.
        stopped: Why further rounds are not needed; empty if they may be.
    """

    SUMMARY: ClassVar[Mapping[str, type]] = {
        "num_simulations": list,
        "num_inside": list,
        "acceptance_rate": float,
        "log_score": float,
        "failures": list,
    }
    KINDS: ClassVar[Mapping[str, Any]] = {
        "settings": dict,
        "fits": list,
        "cuts": list,
        "parts": list,
        "pending": dict,
        "num_new": dict,
        "num_draws": int,
        "summary": dict,
        "stopped": str,
    }

    prior: TruncatedPrior
    fits: list[MixtureEstimator] = field(default_factory=list)
    stopped: str = ""

    def at(self, x_o: Tensor) -> MultilevelState:
        """The same simulations and networks, for another observation.

        Args:
            x_o: The observation, shape `(1, *x_shape)`.

        Returns:
            A state that shares nothing that changes with this one.

        Raises:
            ValueError: If it has another shape than they have.

        Warns:
            UserWarning: If it lies far outside of the simulations.
        """
        summary = {name: [*values] for name, values in self.summary.items()}
        state = replace(self, x_o=x_o, pending={}, summary=summary)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # given when they were trained on
            *lower, highest = without_extremes(merge_levels(self.parts))
        state.check_x(highest.x)
        in_training = TrainingRange.of(highest.x, [level.x for level in lower])
        Watch(in_training).check(state.x_o)
        return state

    @cached_property
    def _is_inside(self) -> list[Tensor]:
        """For each part, whether its simulations are in the region of the round."""
        return [self.prior.contains(part.theta) for part in self.parts]

    def parts_inside(self, is_inside: bool = True) -> list[LevelSimulations]:
        """The simulations inside the region of the current round, or outside of it."""
        pairs = zip(self.parts, self._is_inside)
        chosen = (part[mask == is_inside] for part, mask in pairs)
        return [part for part in chosen if len(part) > 0]

    def parts_outside(self) -> list[LevelSimulations]:
        """The simulations of earlier rounds outside of the region."""
        return self.parts_inside(False)

    def num_inside(self) -> tuple[int, ...]:
        """Simulations in the region at each level, the lowest first."""
        counts = [0] * max((part.level + 1 for part in self.parts), default=0)
        for part, mask in zip(self.parts, self._is_inside):
            counts[part.level] += int(mask.sum())
        return tuple(counts)

    def check_enough(self) -> None:
        """Raise unless each level has simulations in the region.

        Raises:
            ValueError: If one has too few.
        """
        inside = self.num_inside()
        if len(inside) < 2:
            raise ValueError(
                f"num_simulations in the region is {inside}, of level 0 alone. Append "
                "pairs of the highest level by `append_multilevel_simulations`."
            )
        for level, num in enumerate(inside):
            needed = MIN_SIMULATIONS if level == len(inside) - 1 else 2
            if num < needed:
                raise ValueError(
                    f"Level {level} has {num} simulations in the region of this round, "
                    f"but needs at least {needed}. Simulate more of `propose()`."
                )

    def fit(self, settings: MultilevelSettings) -> RoundFit:
        r"""Train from scratch on the simulations in the region.

        These are independent draws from :math:`p(\theta)\, 1[\theta \in R]`, at each
        level and of all rounds, so that any trainer can be used as it is. A hybrid fits
        level maps to the pairs outside, too. In the first round a warning is given if
        the observation lies far outside of the simulations.
        """
        trainer: Any = settings.trainer(
            settings.trainer_type, settings.config, self.prior
        )
        trainer.append_multilevel_simulations(merge_levels(self.parts_inside()))
        if isinstance(trainer, HybridTrainer):
            pairs = [part for part in self.parts_outside() if part.is_paired]
            for level in sorted({part.level for part in pairs}):
                part = merged([each for each in pairs if each.level == level])
                columns: Any = part.theta, part.x, part.x_coarse
                trainer.append_map_simulations(*columns, level)
        estimator = trainer.train(**settings.train_options)
        if self.index == 0 and trainer._watch is not None:
            trainer._watch.check(self.x_o)
        if not isinstance(estimator, MixtureEstimator):
            estimator = MixtureEstimator([estimator], torch.ones(1), trainer._target)
        estimator = estimator.cpu().eval()
        summary = getattr(trainer, "hybrid_summary", None)
        if summary is None:
            return RoundFit(estimator, float("nan"), estimator.member_weights)
        best = weights_of_best(estimator.member_weights, summary)
        return RoundFit(estimator, max(summary.log_scores.values()), best)

    def scores(self, theta: Tensor, acquisition: Acquisition, prior: Any) -> Tensor:
        """Scores of parameters `(n, d_theta)` by the members, up to a factor."""
        estimator, log_probs = self.fits[-1], []
        target = estimator.target
        at = self.x_o.expand(len(theta), *self.x_o.shape[1:])
        pair = (theta[None], at) if target == "theta" else (at[None], theta)
        with torch.no_grad():
            of_prior = 0.0 if target == "theta" else prior.log_prob(theta)
            for member in estimator.members:
                q = MixtureEstimator([member], torch.ones(1), target, estimator.tails)
                log_probs.append(of_prior + q.log_prob(*pair)[0])
        return acquisition.scores(theta, torch.stack(log_probs), prior)

    def content(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {
            **super().content(),
            "fits": [saved_as(fit) for fit in self.fits],
            "cuts": [
                (cut.threshold, cut.low, cut.high, _weights_in(fit, cut.estimator))
                for fit, cut in zip(self.fits, self.prior.cuts)
            ],
            "stopped": self.stopped,
        }

    def restored(
        self, content: Mapping[str, Any], settings: MultilevelSettings
    ) -> MultilevelState:
        """The state in a file, see `RoundState`."""
        fits, cuts = content["fits"], content["cuts"]
        is_valid = len(cuts) in (0, len(fits)) and all(map(is_cut, cuts))
        expect(is_valid, f"cuts are {cuts!r:.60}")
        prior = TruncatedPrior(self.prior.whole, (), self.prior.max_draws)
        state, estimators = self.filled(content, len(fits), settings.prior), []
        for index, saved in enumerate(fits):
            estimators.append(mixture_from(saved, settings, prior, state.x_o))
            if cuts:
                *ends, weights = _with_weights(cuts[index], estimators[-1])
                network = component_of(estimators[-1], weights)
                prior = prior.inside(Cut(network, state.x_o, *ends))
        stopped = content["stopped"]
        return replace(state, prior=prior, fits=estimators, stopped=stopped)


def weights_of_best(weights: Tensor, summary: HybridSummary) -> Tensor:
    """Weights of the members of the component with the highest held-out log score."""
    sizes = {name: num for name, num in summary.num_networks.items() if num > 0}
    if not sizes:  # one network is not divided into components
        return weights
    best = max(sizes, key=lambda name: summary.log_scores[name])
    parts = [float(name == best) * torch.ones(num) for name, num in sizes.items()]
    chosen = weights * torch.cat(parts).to(weights)
    return chosen if bool(chosen.sum() > 0) else weights


def _weights_in(estimator: MixtureEstimator, component: Any) -> Tensor:
    """Weights of the members of a mixture in a component of it."""
    weights = torch.zeros_like(estimator.member_weights)
    for member, weight in zip(component.members, component.weights):
        index = next(i for i, e in enumerate(estimator.members) if e is member)
        weights[index] = weight
    return weights


def _with_weights(cut: Sequence[Any], estimator: MixtureEstimator) -> tuple[Any, ...]:
    """A saved cut with weights of members, which earlier versions did not save."""
    return (*cut, estimator.member_weights) if len(cut) == _ENDS else tuple(cut)


def saved_as(estimator: MixtureEstimator) -> dict[str, Any]:
    """A mixture as tensors and plain values."""
    tails = estimator.tails
    columns = None if tails is None else (tails.center, tails.scale, tails.delta)
    return {
        "members": [member.state_dict() for member in estimator.members],
        "weights": estimator.weights,
        "tails": columns,
        "has_prior": estimator.prior is not None,
    }


def mixture_from(
    saved: Mapping[str, Any],
    settings: MultilevelSettings,
    prior: TruncatedPrior,
    x_o: Tensor,
) -> MixtureEstimator:
    """A mixture from what `saved_as` returned, read from a file.

    Args:
        saved: The weights.
        settings: The settings of the run.
        prior: The prior in the region that they were trained in.
        x_o: The observation.
    """
    is_valid = isinstance(saved, dict) and set(saved) == _ENTRIES
    is_valid = is_valid and isinstance(saved["weights"], Tensor)
    expect(is_valid, "fits are no networks")
    for weights in saved["members"]:
        check_state_dict(weights)
    config, trainer_type = settings.config, settings.trainer_type
    if isinstance(config, HybridConfig):
        config, trainer_type = config.plain_config, trainer_type._member_type  # pyright: ignore[reportAttributeAccessIssue]
    trainer = settings.trainer(trainer_type, config, prior)
    build, target = trainer._network_builder, trainer._target
    members = []
    for weights in saved["members"]:
        network = settings.network_from(weights, build, target, x_o)
        # estimators of sbi get a map of x; as they were, they can be saved again
        if set(network.state_dict()) != set(weights):
            network = without_x_map(network)
        members.append(network)
    tails = None if saved["tails"] is None else TailTransform(*saved["tails"])
    component = prior if saved["has_prior"] else None
    return MixtureEstimator(members, saved["weights"], target, tails, component).eval()


def is_cut(cut: Any) -> bool:
    """Whether a value may be a threshold, the ends of a box and weights, see `Cut`."""
    threshold, *tensors = cut
    is_box = len(cut) in (_ENDS, _ENDS + 1)
    is_box = is_box and all(isinstance(each, Tensor) for each in tensors)
    return isinstance(threshold, float) and is_box
