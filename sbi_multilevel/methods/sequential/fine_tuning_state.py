"""The state of rounds of fine-tuning: how it is trained on, and its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, ClassVar

from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.methods.npe import MFNPE
from sbi_multilevel.methods.sequential.settings import FineTuningSettings, Stream
from sbi_multilevel.methods.sequential.state import Proposals, RoundState
from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.ensemble import train_members
from sbi_multilevel.training.network import WarmStart
from sbi_multilevel.utils.files import check_state_dict, expect

Networks = list[ConditionalDensityEstimator]


@dataclass(eq=False)
class FineTuningState(RoundState):
    """Where a run of fine-tuning stands; all simulations are of level 1.

    Args:
        networks: The network of each member; `None` before pre-training.
        is_pretrained: Whether they were pre-trained here, not elsewhere.
        low_weights: Weights of the low-fidelity simulations, by which levels are
            aligned; `None` without alignment.
        low_sums: What identifies the low-fidelity simulations, see `sums_of`.
    """

    SUMMARY: ClassVar[Mapping[str, type]] = {
        "num_simulations": int,
        "acceptance_rate": float,
        "num_active": int,
        "failures": list,
        "coverage": list,
    }
    # names are those of the first version
    KINDS: ClassVar[Mapping[str, Any]] = {
        "settings": dict,
        "members": (list, NoneType),
        "rows": list,
        "pending": (dict, NoneType),
        "low_weights": (Tensor, NoneType),
        "low_sums": (tuple, NoneType),
        "counters": tuple,
        "summary": dict,
    }

    networks: Networks | None = None
    is_pretrained: bool = False
    low_weights: Tensor | None = None
    low_sums: tuple[float, ...] | None = None

    @property
    def new_simulations(self) -> list[LevelSimulations]:
        """High-fidelity simulations that were appended since the last training."""
        first, missing = len(self.parts), self.num_appended
        while missing > 0:
            first -= 1
            missing -= len(self.parts[first])
        return self.parts[first:]

    @property
    def num_appended(self) -> int:
        """How many they are."""
        return self.num_new.get(1, 0)

    @property
    def proposals(self) -> Proposals | None:
        """Proposals of the current round; `None` where there are none yet."""
        return self.pending.get(1)

    def content(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        common, networks = super().content(), self.networks
        return {
            "members": None if networks is None else [n.state_dict() for n in networks],
            "rows": common["parts"],
            "pending": common["pending"].get(1),
            "low_weights": self.low_weights,
            "low_sums": self.low_sums,
            "counters": (self.num_appended, self.index, self.num_draws),
            "summary": self.summary,
        }

    def restored(
        self, content: Mapping[str, Any], settings: FineTuningSettings
    ) -> FineTuningState:
        """The state in a file, see `RoundState`."""
        for weights in content["members"] or ():
            check_state_dict(weights)
        weights, sums = content["low_weights"], content["low_sums"]
        is_valid = sums is None or all(type(number) is float for number in sums)
        expect(is_valid, f"low_sums are {sums!r:.60}")
        if weights is not None:
            is_valid = sums is not None and weights.shape == sums[:1]
            is_valid = is_valid and weights.is_floating_point()
            expect(is_valid, f"low_weights have the shape {tuple(weights.shape)}")
        counters, summary = content["counters"], content["summary"]
        are_counts = all(type(number) is int and number >= 0 for number in counters)
        expect(len(counters) == 3 and are_counts, f"counters are {counters!r:.60}")
        num_new, index, num_draws = counters
        # earlier versions did not compute coverage
        rounds = len(summary.get("failures", ()))
        fields = {
            "parts": content["rows"],
            "pending": {} if content["pending"] is None else {1: content["pending"]},
            "num_new": {1: num_new},
            "num_draws": num_draws,
            "summary": {"coverage": [[] for _ in range(rounds)], **summary},
        }
        state, networks = self.filled(fields, index, settings.prior), content["members"]
        for part in state.parts:
            expect(part.level == 1, f"it has simulations of level {part.level}, not 1")
        if networks is not None:
            is_right = len(networks) == settings.num_members
            expect(is_right, f"it has {len(networks)} networks")
            networks = [state.network_from(each, settings) for each in networks]
        return replace(state, networks=networks, low_weights=weights, low_sums=sums)

    def network_from(
        self, source: WarmStart, settings: FineTuningSettings
    ) -> ConditionalDensityEstimator:
        """A network from another, or from weights that fit those of the state."""
        build = settings.trainer(MFNPE, settings.config)._network_builder
        if self.networks:
            template = self.networks[0]
            build = lambda theta, x: deepcopy(template)
        return settings.network_from(source, build, "theta", self.x_o).eval().cpu()

    def fit(
        self,
        settings: FineTuningSettings,
        low: LevelSimulations | None,
        low_weights: Tensor | None,
    ) -> Networks:
        """Train each network on high-fidelity simulations.

        Outputs of the level below, where there are any, are trained on first. In the
        first round a warning is given if the observation lies far outside of x.

        Args:
            settings: The settings of the run.
            low: Low-fidelity simulations.
            low_weights: Their weights, by which levels are aligned; `None` for no
                alignment.
        """
        config = settings.config
        simulations = self.parts if settings.all_rounds else self.new_simulations
        starts: Sequence[Any] = self.networks or [None] * settings.num_members
        if low is None or low_weights is None:
            config = replace(config, alignment=None)
        elif self.networks is not None:  # read x at the scale of the weighted ones
            moments = Moments.of(low.x, low_weights)
            starts = [network.refer_to(moments) for network in self.networks]  # pyright: ignore
        trainers = []
        for network in starts:
            trainer = settings.trainer(MFNPE, config)
            if network is not None:
                trainer.warm_start(network)
            for part in simulations:
                if part.x_coarse is not None:
                    trainer.append_lowfidelity_simulations(part.theta, part.x_coarse)
            for part in simulations:
                trainer.append_weighted_simulations(
                    part.theta, part.x, part.loss_weights
                )
            trainers.append(trainer)
        seed = settings.seed_of(Stream.TRAINING, self.index)
        folds = [Fold(index, seed) for index in range(settings.num_members)]
        options = settings.train_options
        trained = train_members(trainers, folds, settings.num_workers, options)
        if self.index == 0 and (watch := trained[0]._watch) is not None:
            watch.check(self.x_o)
        return [trainer._neural_net for trainer in trained]


def sums_of(low: LevelSimulations | None) -> tuple[float, ...] | None:
    """What identifies low-fidelity simulations: their number and sums."""
    if low is None:
        return None
    return float(len(low)), *(float(c.double().sum()) for c in (low.theta, low.x))
