r"""Four summaries of the voltage at the soma.

With the current between :math:`t_\mathrm{on} = 10` ms and :math:`t_\mathrm{off} = 110`
ms, as in Krouglova et al. (2026), arXiv:2502.08416:

1. the number of spikes in :math:`[t_\mathrm{on}, t_\mathrm{off})`,
2. the mean of the voltage before :math:`t_\mathrm{on}` (resting potential),
3. its standard deviation in the last tenth of that time, 9 to 10 ms,
4. the mean of the voltage in :math:`[t_\mathrm{on}, t_\mathrm{off})`.

A spike begins when the voltage rises above -10 mV after it was below -20 mV. The code
of the paper has the same threshold, but counts each maximum above it that is 0.5 ms
after the last; at a voltage that stays above the threshold, these are maxima of the
noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD, RESET = -10.0, -20.0  # mV
ONSET, OFFSET = 10.0, 110.0  # ms
PLAUSIBLE = -150.0, 150.0  # mV
NAMES = ("spike_count", "resting_mean", "resting_std", "step_mean")


def spike_onsets(voltage: Tensor) -> Tensor:
    """Whether a spike begins at each time.

    Args:
        voltage: Voltages, mV, shape `(n, num_times)`.

    Returns:
        Booleans of the same shape.
    """
    # 1 above the threshold, 0 below the reset; between the two, the last of these
    is_known = (voltage >= THRESHOLD) | (voltage < RESET)
    times = torch.arange(voltage.shape[1]).expand_as(voltage)
    last = torch.where(is_known, times, -1).cummax(dim=1).values
    is_high = (voltage >= THRESHOLD).gather(1, last.clamp_min(0)) & (last >= 0)
    is_low = (last >= 0) & ~is_high
    onsets = torch.zeros_like(is_high)
    onsets[:, 1:] = is_high[:, 1:] & is_low[:, :-1]
    return onsets


def is_plausible(voltage: Tensor) -> Tensor:
    """Whether all voltages of a trace are finite and within -150 to 150 mV.

    Args:
        voltage: Voltages, mV, shape `(n, num_times)`.
    """
    low, high = PLAUSIBLE
    return ((voltage > low) & (voltage < high)).all(dim=1)


def summarize(voltage: Tensor, dt: float) -> Tensor:
    """The four summaries, in the order of `NAMES`; NaN where a trace is implausible.

    Args:
        voltage: Voltages, mV, from time 0 on, shape `(n, num_times)`.
        dt: Time between two voltages, ms.

    Returns:
        Summaries, float32, shape `(n, 4)`.

    Raises:
        ValueError: If the voltages end before the current.
    """
    first, last = round(ONSET / dt), round(OFFSET / dt)
    if voltage.ndim != 2 or voltage.shape[1] < last:
        raise ValueError(
            f"voltage has shape {tuple(voltage.shape)}, but must have shape (n, "
            f"num_times) with at least {last} times at dt={dt}. Simulate {OFFSET} ms."
        )
    exact = voltage.double()  # sums of many values
    columns = (
        spike_onsets(voltage)[:, first:last].sum(dim=1).double(),
        exact[:, :first].mean(dim=1),
        exact[:, round(0.9 * ONSET / dt) : first].std(dim=1, correction=0),
        exact[:, first:last].mean(dim=1),
    )
    x = torch.stack(columns, dim=1).float()
    return torch.where(is_plausible(voltage).unsqueeze(1), x, torch.nan)
