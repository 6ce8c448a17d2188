"""States of rounds of several levels on disk: tensors and plain values."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.methods.sequential.checkpoint import (
    check_proposals,
    check_settings,
    explained,
    write_whole,
)
from sbi_multilevel.methods.sequential.multilevel_state import SUMMARY, MultilevelState
from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.methods.sequential.round_method import (
    RoundMethod,
    check_saved,
    saved_as,
)
from sbi_multilevel.methods.sequential.truncated_prior import (
    Cut,
    TruncatedPrior,
    parts_of,
)
from sbi_multilevel.utils.files import check_state_dict, expect, read_state

_KINDS = {
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


def write(path: str | os.PathLike, settings: dict, state: MultilevelState) -> None:
    """Write a state; if writing is interrupted, the file before remains.

    Args:
        path: The file.
        settings: The settings that must be the same to resume, as plain values.
        state: The state.
    """
    content = {
        "settings": settings,
        "fits": [saved_as(fit) for fit in state.fits],
        "cuts": [(cut.threshold, cut.low, cut.high) for cut in state.prior.cuts],
        "parts": [vars(part) for part in state.parts],
        "pending": {level: vars(each) for level, each in state.pending.items()},
        "num_new": state.num_new,
        "num_draws": state.num_draws,
        "summary": state.summary,
        "stopped": state.stopped,
    }
    write_whole(path, content)


def read(
    path: str | os.PathLike,
    settings: dict[str, Any],
    method: RoundMethod,
    state: MultilevelState,
) -> MultilevelState:
    """Read a state, without unpickling anything but tensors and plain values.

    Args:
        path: The file.
        settings: The present settings.
        method: Builds the networks of the file.
        state: A state with the observation and the whole prior.

    Raises:
        ValueError: If the file was written under other settings, or holds something
            else.
        OSError: If it cannot be read.
    """
    with explained(path):
        content = read_state(Path(path))
        expect(isinstance(content, dict), f"it holds a {type(content).__name__}")
        for name, kind in _KINDS.items():
            found = type(content.get(name, ...))
            expect(issubclass(found, kind), f"{name} is missing, or a {found.__name__}")
    check_settings(content["settings"], settings, path)
    with explained(path):
        _check(content)
        first = MultilevelState(state.x_o, TruncatedPrior(state.prior.whole))
        for columns in content["parts"]:
            first.append(LevelSimulations(**columns))
        pending = {
            level: Proposals(**each) for level, each in content["pending"].items()
        }
        for each in pending.values():
            check_proposals(each)
        fits, prior = [], first.prior
        for index, saved in enumerate(content["fits"]):
            fits.append(method.restored(saved, prior, first.x_o))
            if index < len(content["cuts"]):
                cut = Cut(parts_of(fits[-1]), first.x_o, *content["cuts"][index])
                prior = TruncatedPrior(prior.whole, [*prior.cuts, cut], prior.max_draws)
        return replace(
            first,
            prior=prior,
            fits=fits,
            num_new=content["num_new"],
            pending=pending,
            num_draws=content["num_draws"],
            summary=content["summary"],
            stopped=content["stopped"],
        )


def _check(content: dict[str, Any]) -> None:
    """Raise unless networks, counts and the summary are valid."""
    fits, summary = content["fits"], content["summary"]
    for saved in fits:
        expect(check_saved(saved), "fits are no networks")
        for weights in saved["members"]:
            check_state_dict(weights)
    cuts = content["cuts"]
    expect(
        len(cuts) in (0, len(fits)) and all(map(_is_cut, cuts)),
        f"cuts are {cuts!r:.60}",
    )
    for name, kind in SUMMARY.items():
        values = summary.get(name)
        expect(
            isinstance(values, list)
            and len(values) == len(fits)
            and all(type(value) is kind for value in values),
            f"summary has {name} {values!r:.60}",
        )
    counts = [*content["num_new"].items(), (0, content["num_draws"])]
    expect(
        all(type(n) is int and n >= 0 for pair in counts for n in pair),
        f"counts are {counts!r:.60}",
    )
    for name, kind in (("parts", list), ("pending", dict)):
        each = content[name] if kind is list else content[name].values()
        is_valid = all(isinstance(columns, dict) for columns in each)
        expect(
            is_valid and all(_has_tensors(c) for c in each), f"{name} are no columns"
        )


def _is_cut(cut: Any) -> bool:
    return (
        isinstance(cut, tuple)
        and len(cut) == 3
        and isinstance(cut[0], float)
        and all(isinstance(end, Tensor) for end in cut[1:])
    )


def _has_tensors(columns: dict[str, Any]) -> bool:
    return isinstance(columns.get("theta"), Tensor) and columns["theta"].dtype == (
        torch.float32
    )
