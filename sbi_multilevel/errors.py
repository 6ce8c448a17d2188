"""The root of the exceptions of this package.

Policy:

- An exception that only this package raises derives from `SbiMultilevelError` and from
  the built-in exception that fits best, in this order. One `except` catches all of
  them; code that knows Python's exceptions alone works too.
- A wrong argument is a `ValueError` or a `TypeError`. A class of its own is worth it
  only where callers react differently: to resume, say, or to ask for something else.
- The message names the argument or the object, its value, and the remedy.
- What a caller needs to react is an attribute, not only a part of the message. All
  arguments of the constructor go into `args`, so that it can be pickled by workers.
- Exceptions of simulators, of sbi and of PyTorch pass through unchanged.
- A new base or a new subclass is a compatible change; a base that is taken away is not.
"""

from __future__ import annotations


class SbiMultilevelError(Exception):
    """Base of all exceptions that this package defines; itself never raised.

    Example:
        >>> class NoPairs(SbiMultilevelError, ValueError):
        ...     "No simulation of this level is paired."
        >>> try:
        ...     raise NoPairs("level=1 has no pairs. Give `x_coarse`.")
        ... except ValueError as error:
        ...     print(isinstance(error, SbiMultilevelError), error)
        True level=1 has no pairs. Give `x_coarse`.
    """
