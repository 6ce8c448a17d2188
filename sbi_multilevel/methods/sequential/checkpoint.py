"""States on disk: tensors and plain values, a file replaced as a whole."""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.data.validation import check_columns
from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.utils.files import check_state_dict, expect, read_state, understood

if TYPE_CHECKING:
    from sbi_multilevel.methods.sequential.state import RoundState

# what is kept of each round
SUMMARY = {
    "num_simulations": int,
    "acceptance_rate": float,
    "num_active": int,
    "failures": list,
    "coverage": list,
}
# the entries of a file; names are those of the first version
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
# settings that earlier versions lacked, and what they did
_EARLIER = {
    "shared_pretraining": False,
    "all_rounds": True,
    "num_coverage_simulations": 0,
}
_EARLIER_IN_CONFIG = {"schedule": None}
# settings and values that had other names
_RENAMED = {"recipe": "config", "num_coverage_rows": "num_coverage_simulations"}
_RENAMED_IN_CONFIG = {"Transfer(": "TransferConfig(", "'own'": "'standardize'"}


def write(path: str | os.PathLike, settings: dict[str, Any], state: RoundState) -> None:
    """Write a state; if writing is interrupted, the file before remains.

    Args:
        path: The file.
        settings: The settings that must be the same to resume, as plain values.
        state: The state.
    """
    networks, pending = state.networks, state.pending
    content = {
        "settings": settings,
        "members": None if networks is None else [n.state_dict() for n in networks],
        "rows": [vars(part) for part in state.simulations if len(part) > 0],
        "pending": None if pending is None else vars(pending),
        "low_weights": state.low_weights,
        "low_sums": state.low_sums,
        "counters": (state.num_new, state.index, state.num_draws),
        "summary": state.summary,
    }
    write_whole(path, content)


def write_whole(path: str | os.PathLike, content: Any) -> None:
    """Replace a file as a whole by tensors and plain values."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save(content, unfinished)
    os.replace(unfinished, path)


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a state, without unpickling anything but tensors and plain values.

    Returns:
        The settings it was written under, and the fields of the state by name; of
        networks their weights.

    Raises:
        ValueError: If the file holds something else; names what is wrong with it.
        OSError: If it cannot be read.
    """
    with explained(path):
        content = read_state(path)
        expect(isinstance(content, dict), f"it holds a {type(content).__name__}")
        for name, kind in _KINDS.items():
            found = type(content.get(name, ...))  # `None` may be right
            expect(issubclass(found, kind), f"{name} is missing, or a {found.__name__}")
        for weights in content["members"] or ():
            check_state_dict(weights)
        # earlier versions did not compute it
        rounds = len(content["summary"].get("failures", ()))
        content["summary"].setdefault("coverage", [[] for _ in range(rounds)])
        _check_numbers(content)
        num_new, index, num_draws = content["counters"]
        simulations = [LevelSimulations(**columns) for columns in content["rows"]]
        for part in simulations:
            expect(part.level == 1, f"it has simulations of level {part.level}, not 1")
        pending = content["pending"]
        if pending is not None:
            pending = Proposals(**pending)
            check_proposals(pending)
        return _of_this_version(content["settings"]), {
            "networks": content["members"],
            "simulations": simulations,
            "num_new": num_new,
            "pending": pending,
            "index": index,
            "num_draws": num_draws,
            "low_weights": content["low_weights"],
            "low_sums": content["low_sums"],
            "summary": content["summary"],
        }


def _of_this_version(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under the names of this version."""
    renamed = {_RENAMED.get(name, name): each for name, each in settings.items()}
    config = renamed.get("config", "")
    if "recipe" in settings:
        for before, after in _RENAMED_IN_CONFIG.items():
            config = config.replace(before, after)
    return {
        **_EARLIER,
        **renamed,
        "config": with_sorted_fields(config, _EARLIER_IN_CONFIG),
    }


def with_sorted_fields(text: str, missing: Mapping[str, Any] | None = None) -> str:
    """The `repr` of a dataclass with its fields in alphabetical order.

    The order of fields may change between versions, and fields are added.

    Args:
        text: The `repr`.
        missing: Values of fields that it may lack.
    """
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    known = {each.arg for each in call.keywords}
    for name in set(missing or ()) - known:
        call.keywords.append(ast.keyword(name, ast.Constant((missing or {})[name])))
    call.keywords.sort(key=lambda each: each.arg or "")
    return ast.unparse(call)


def explained(path: str | os.PathLike) -> contextlib.AbstractContextManager[None]:
    """Explain errors of reading a state, by `sbi_multilevel.utils.files`."""
    return understood(
        "path",
        path,
        "the state of a run",
        "Pass a file that `save` wrote, or another path to start from scratch.",
    )


def _check_numbers(content: dict[str, Any]) -> None:
    """Raise unless counters, summary and weights are valid."""
    counters, weights, sums = (
        content[name] for name in ("counters", "low_weights", "low_sums")
    )
    is_valid = len(counters) == 3 and all(type(n) is int and n >= 0 for n in counters)
    expect(is_valid, f"counters are {counters!r:.60}")
    for name, kind in SUMMARY.items():
        values = content["summary"].get(name)
        expect(
            isinstance(values, list)
            and len(values) == counters[1]
            and all(type(value) is kind for value in values),
            f"summary has {name} {values!r:.60}",
        )
    is_valid = sums is None or all(type(number) is float for number in sums)
    expect(is_valid, f"low_sums are {sums!r:.60}")
    if weights is not None:
        shape = None if sums is None else (sums[0],)
        is_valid = weights.is_floating_point() and weights.shape == shape
        expect(is_valid, f"low_weights have the shape {tuple(weights.shape)}")


def check_proposals(proposals: Proposals) -> None:
    """Raise unless all columns have the same length, and indices are valid."""
    num = len(proposals.theta)
    columns = {"theta": proposals.theta, "weights": proposals.weights.unsqueeze(1)}
    check_columns(columns, 1)
    active = proposals.is_active
    is_valid = active.shape == (num,) and active.dtype == torch.bool
    expect(is_valid, "active is not a boolean for each proposal")
    expect(isinstance(proposals.acceptance, float), "acceptance is no number")
    indices = [*proposals.outputs, *proposals.failures]
    is_valid = all(type(index) is int and 0 <= index < num for index in indices)
    expect(is_valid, "outputs or failures have indices that were not proposed")
    kinds = {
        tuple((side.shape, side.dtype) for side in sides)
        for sides in proposals.outputs.values()
    }
    expect(len(kinds) < 2, "outputs differ in shape or type")
    texts = proposals.failures.values()
    expect(all(isinstance(text, str) for text in texts), "failures are no text")


def check_settings(
    saved: dict[str, Any], ours: dict[str, Any], path: str | os.PathLike
) -> None:
    """Raise if a state was written under other settings.

    Args:
        saved: The settings in the file.
        ours: The present settings.
        path: The file.

    Raises:
        ValueError: If they differ; names the settings that do.
    """
    differing = [
        f"{name} was {saved.get(name)}, is {value}"
        for name, value in ours.items()
        if not _same(saved.get(name), value)
    ]
    if differing:
        raise ValueError(
            f"path={str(path)!r} holds a run with other settings: "
            f"{'; '.join(differing)}. Use the same settings to resume it, or another "
            "path to start from scratch."
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b
