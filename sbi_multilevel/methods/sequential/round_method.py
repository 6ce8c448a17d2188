"""How a round of several levels trains: a trainer, and what its networks are used for.

A round trains on the simulations inside the region of the round. With
:math:`R` the region, simulations of all rounds that lie in it are independent draws
from :math:`p(\\theta)\\, 1[\\theta \\in R]`, at each level, so that any trainer can be
used as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_multilevel.data.simulations import merge_levels, merged
from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.estimators.reading import without_x_map
from sbi_multilevel.level_maps.tail_transform import TailTransform
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.hybrid.trainer import HybridTrainer
from sbi_multilevel.methods.sequential.checkpoint import network_from
from sbi_multilevel.methods.sequential.multilevel_state import MultilevelState
from sbi_multilevel.methods.sequential.settings import Settings
from sbi_multilevel.methods.sequential.truncated_prior import TruncatedPrior
from sbi_multilevel.training.trainer import MultilevelTrainer
from sbi_multilevel.utils.files import check_state_dict, expect

_ENTRIES = {"members", "weights", "tails", "has_prior"}  # of a mixture in a file


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundMethod(Settings):
    """A trainer and its arguments.

    Args:
        trainer_type: The trainer of several levels.
        mcmc_options: Arguments of `MCMCPosterior`, for a likelihood.

    Raises:
        ValueError: If `config` has `widen=True`.
    """

    trainer_type: type[MultilevelTrainer]
    mcmc_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        # files of a run hold the weights of networks as `density_estimator` builds them
        if isinstance(self.config, HybridConfig) and self.config.widen:
            raise ValueError(
                "config has widen=True, which is not available in rounds. Leave it "
                "out, or widen in one training of `HybridNPE` or `HybridNLE`."
            )

    @property
    def is_likelihood(self) -> bool:
        """Whether theta may follow any distribution."""
        return self.truncation is None

    def saved(self, x_o: Tensor) -> dict[str, Any]:
        """The settings that must be the same to resume a run, as plain values."""
        return {**super().saved(x_o), "method": self.trainer_type.__name__}

    def fit(self, state: MultilevelState) -> tuple[MixtureEstimator, float]:
        """Train from scratch on the simulations in the region.

        A hybrid fits level maps to the pairs outside, too. In the first round a warning
        is given if the observation lies far outside of the simulations.

        Returns:
            The density of theta, or of x; and the mean log density of held-out
            high-fidelity simulations under the networks that were not trained on them,
            NaN if the method has none.
        """
        trainer = self.trainer(self.trainer_type, self.config, state.prior)
        trainer.append_multilevel_simulations(merge_levels(state.parts_inside()))
        if isinstance(trainer, HybridTrainer):
            pairs = [part for part in state.parts_outside() if part.is_paired]
            for level in sorted({part.level for part in pairs}):
                part = merged([each for each in pairs if each.level == level])
                columns: Any = part.theta, part.x, part.x_coarse
                trainer.append_map_simulations(*columns, level)
        estimator = trainer.train(**self.train_options)  # pyright: ignore[reportAttributeAccessIssue]
        if state.index == 0 and trainer._watch is not None:
            trainer._watch.check(state.x_o)
        summary = getattr(trainer, "hybrid_summary", None)
        if not isinstance(estimator, MixtureEstimator):
            estimator = MixtureEstimator([estimator], torch.ones(1), trainer._target)
        score = float("nan") if summary is None else max(summary.log_scores.values())
        return estimator.cpu().eval(), score

    def scores(self, theta: Tensor, state: MultilevelState) -> Tensor:
        """Scores of parameters `(n, d_theta)` by the members, up to a factor."""
        assert self.acquisition is not None
        estimator, log_probs = state.fits[-1], []
        target = estimator.target
        at = state.x_o.expand(len(theta), *state.x_o.shape[1:])
        pair = (theta[None], at) if target == "theta" else (at[None], theta)
        with torch.no_grad():
            of_prior = 0.0 if target == "theta" else self.prior.log_prob(theta)
            for member in estimator.members:
                q = MixtureEstimator([member], torch.ones(1), target, estimator.tails)
                log_probs.append(of_prior + q.log_prob(*pair)[0])
        return self.acquisition.scores(theta, torch.stack(log_probs), self.prior)

    def restored(
        self, saved: Mapping[str, Any], prior: TruncatedPrior, x_o: Tensor
    ) -> MixtureEstimator:
        """A mixture from a file, see `MultilevelState.content`.

        Args:
            saved: The weights.
            prior: The prior in the region that they were trained in.
            x_o: The observation.
        """
        is_valid = isinstance(saved, dict) and set(saved) == _ENTRIES
        is_valid = is_valid and isinstance(saved["weights"], Tensor)
        expect(is_valid, "fits are no networks")
        for weights in saved["members"]:
            check_state_dict(weights)
        config, trainer_type = self.config, self.trainer_type
        if isinstance(config, HybridConfig):
            config, trainer_type = config.plain_config, trainer_type._member_type  # pyright: ignore[reportAttributeAccessIssue]
        trainer = self.trainer(trainer_type, config, prior)
        build, target = trainer._network_builder, trainer._target
        members, tails = [], saved["tails"]
        for weights in saved["members"]:
            network = network_from(weights, build, target, self.prior, x_o)
            # estimators of sbi get a map of x; as they were, they can be saved again
            if set(network.state_dict()) != set(weights):
                network = without_x_map(network)
            members.append(network)
        return MixtureEstimator(
            members,
            saved["weights"],
            target,
            None if tails is None else TailTransform(*tails),
            prior if saved["has_prior"] else None,
        ).eval()
