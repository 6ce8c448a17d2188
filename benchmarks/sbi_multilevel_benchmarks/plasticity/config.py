"""Size and duration of the spiking network."""

from __future__ import annotations

import math
from dataclasses import dataclass

FULL_SIZE = 4096
PROBABILITY = 0.1  # of a connection in the full network
LEARNING_RATE = 0.01
INITIAL_WEIGHTS = (0.1, 0.1, 1.0, 1.0)  # in the order of `RULES`
_SMALLEST = 412  # a multiple of 4, at which the probability is just below 1


@dataclass(frozen=True)
class NetworkConfig:
    """Size and duration of a network.

    Args:
        num_excitatory: Number of E neurons; there are a quarter as many I neurons.
        settle_seconds: Simulated seconds before spikes are counted.
        record_seconds: Simulated seconds in which spikes are counted.
        learning_rate: The learning rate; 0 for a network without plasticity.
        initial_weights: Initial weights of EE, EI, IE and II.

    Raises:
        ValueError: If the size or a duration is out of range.
    """

    num_excitatory: int = 512
    settle_seconds: float = 20.0
    record_seconds: float = 5.0
    learning_rate: float = LEARNING_RATE
    initial_weights: tuple[float, float, float, float] = INITIAL_WEIGHTS

    def __post_init__(self) -> None:
        n = self.num_excitatory
        if n % 4 or not _SMALLEST <= n <= FULL_SIZE:
            raise ValueError(
                f"num_excitatory={n} must be a multiple of 4 in {_SMALLEST} to "
                f"{FULL_SIZE}: smaller networks have too few neurons to connect. Pass "
                "512, or 4096 for the size of the papers."
            )
        durations = {"settle_seconds": 0.0, "record_seconds": 1e-3}
        for name, least in durations.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(
                    f"{name}={value} must be a finite number >= {least}. Pass seconds, "
                    "e.g. 120 and 10 as in the papers."
                )

    @property
    def probability(self) -> float:
        """Probability that two neurons are connected."""
        return PROBABILITY * FULL_SIZE / self.num_excitatory

    @property
    def num_neurons(self) -> int:
        """Number of E and I neurons."""
        return self.num_excitatory + self.num_excitatory // 4
