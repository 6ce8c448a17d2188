"""Names and arguments that still work, warn, and are removed two minor releases later.

Policy: what is deprecated in version 0.2 works through 0.3 and is gone in 0.4. The
warning is a `FutureWarning`, which Python shows to everybody; a `DeprecationWarning` is
for what only code of other packages uses. `CHANGELOG.md` names what is deprecated, and
later what is removed. A test fails once `__version__` reaches a removal that is due.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

ANNOUNCED: dict[str, str] = {}  # what is deprecated, and the version of its removal


def removal(since: str) -> str:
    """The version that removes what is deprecated since another one.

    Example:
        >>> removal("0.2.1")
        '0.4'
    """
    major, minor = since.split(".")[:2]
    return f"{major}.{int(minor) + 2}"


def deprecated_argument(
    name: str, *, since: str, new: str, category: type[Warning] = FutureWarning
) -> Callable[[Callable], Callable]:
    """Decorate a function of which a keyword argument has a new name.

    A call with both names raises a `TypeError`.
    """

    def decorate(function: Callable) -> Callable:
        what = f"`{name}` of `{function.__module__}.{function.__qualname__}`"
        message = _announce(what, since, new)

        @functools.wraps(function)
        def renamed(*args, **kwargs):
            if name in kwargs:
                if new in kwargs:
                    raise TypeError(f"{what} is now `{new}`. Give only `{new}`.")
                warnings.warn(message, category, stacklevel=2)
                kwargs[new] = kwargs.pop(name)
            return function(*args, **kwargs)

        return renamed

    return decorate


def deprecated_name(
    module: str, moved: Mapping[str, str], *, since: str, category=FutureWarning
) -> Callable[[str], Any]:
    """The `__getattr__` of the module `module`, of which names were changed or moved.

    `moved` has the earlier names, and where each is now: `"package.module.Name"`.
    """
    messages = {
        name: _announce(f"`{module}.{name}`", since, moved[name]) for name in moved
    }

    def __getattr__(name: str) -> Any:
        if name not in messages:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(messages[name], category, stacklevel=2)
        home, _, target = moved[name].rpartition(".")
        return getattr(importlib.import_module(home), target)

    return __getattr__


def _announce(what: str, since: str, new: str) -> str:
    gone = ANNOUNCED[what] = removal(since)
    return f"{what} is deprecated since {since}, and removed in {gone}. Use `{new}`."
