"""States on disk: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.data.validation import check_shapes, check_tensor
from sbi_multilevel.methods.sequential.rounds import Proposals
from sbi_multilevel.utils.files import check_state_dict, expect, read_state, understood

# what is kept of each round
SUMMARY = {
    "num_simulations": int,
    "acceptance_rate": float,
    "num_active": int,
    "failures": list,
    "coverage": list,
}
_KINDS = {
    "settings": dict,
    "members": (list, NoneType),
    "rows": list,
    "pending": (dict, NoneType),
    "low_weights": (Tensor, NoneType),
    "low_sums": (tuple, NoneType),
    "counters": tuple,
    "summary": dict,
}


def write(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write a state; a run that dies meanwhile leaves the one before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a state, without unpickling anything but tensors and plain values.

    Returns:
        What was written, `rows` as `LevelSimulations`, `pending` as `Proposals`.

    Raises:
        ValueError: If the file holds something else; names what is wrong with it.
        OSError: If it cannot be read.
    """
    with explained(path):
        state = read_state(path)
        expect(isinstance(state, dict), f"it holds a {type(state).__name__}")
        for name, kind in _KINDS.items():
            found = type(state.get(name, ...))  # `None` may be right
            expect(issubclass(found, kind), f"{name} is missing, or a {found.__name__}")
        for weights in state["members"] or ():
            check_state_dict(weights)
        # files of versions that did not compute it lack it
        rounds = len(state["summary"].get("failures", ()))
        state["summary"].setdefault("coverage", [[] for _ in range(rounds)])
        _check_numbers(state)
        state["rows"] = [LevelSimulations(**columns) for columns in state["rows"]]
        for rows in state["rows"]:
            expect(rows.level == 1, f"it has rows of level {rows.level}, not 1")
        if state["pending"] is not None:
            state["pending"] = Proposals(**state["pending"])
            _check_proposals(state["pending"])
        return state


def explained(path: str | os.PathLike) -> contextlib.AbstractContextManager[None]:
    """Where a state is understood, see `sbi_multilevel.utils.files.understood`."""
    return understood(
        "path",
        path,
        "the state of a run",
        "Pass a file that `MFTSNPE.save` wrote, or another path to start from scratch.",
    )


def _check_numbers(state: dict[str, Any]) -> None:
    """Raise unless counters, summary and weights of low-fidelity rows are sound."""
    counters, weights, sums = (
        state[name] for name in ("counters", "low_weights", "low_sums")
    )
    is_sound = len(counters) == 3 and all(type(n) is int and n >= 0 for n in counters)
    expect(is_sound, f"counters are {counters!r:.60}")
    for name, kind in SUMMARY.items():
        values = state["summary"].get(name)
        expect(
            isinstance(values, list)
            and len(values) == counters[1]
            and all(type(value) is kind for value in values),
            f"summary has {name} {values!r:.60}",
        )
    is_sound = sums is None or all(type(number) is float for number in sums)
    expect(is_sound, f"low_sums are {sums!r:.60}")
    if weights is not None:
        shape = None if sums is None else (sums[0],)
        is_sound = weights.is_floating_point() and weights.shape == shape
        expect(is_sound, f"low_weights have the shape {tuple(weights.shape)}")


def _check_proposals(proposals: Proposals) -> None:
    """Raise unless all columns have as many rows, and outcomes are of these."""
    num_rows = len(proposals.theta)
    columns = {"theta": proposals.theta, "weights": proposals.weights.unsqueeze(1)}
    for name, values in columns.items():
        check_tensor(name, values, 1)
    check_shapes(columns, 1)
    is_active = proposals.is_active
    expect(
        is_active.shape == (num_rows,) and is_active.dtype == torch.bool,
        "active does not say yes or no for each proposal",
    )
    expect(isinstance(proposals.acceptance, float), "acceptance is no number")
    rows = [*proposals.outputs, *proposals.failures]
    is_sound = all(type(row) is int and 0 <= row < num_rows for row in rows)
    expect(is_sound, "outputs or failures are of other rows than were proposed")
    kinds = {
        tuple((side.shape, side.dtype) for side in sides)
        for sides in proposals.outputs.values()
    }
    expect(len(kinds) < 2, "outputs differ in shape or type")
    texts = proposals.failures.values()
    expect(all(isinstance(text, str) for text in texts), "failures are no text")


def check_settings(saved: dict[str, Any], ours: dict[str, Any], path: Any) -> None:
    """Raise if a state was written under other settings, and say which."""
    differing = [
        f"{name} was {saved.get(name)}, is {value}"
        for name, value in ours.items()
        if not _same(saved.get(name), value)
    ]
    if differing:
        raise ValueError(
            f"path={str(path)!r} holds a run with other settings: "
            f"{'; '.join(differing)}. Use the same settings to go on with it, or "
            "another path to start anew."
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b
