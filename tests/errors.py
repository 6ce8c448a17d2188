"""Which errors are those of this package."""

import ast
import traceback
from pathlib import Path

import sbi_multilevel

PACKAGE = Path(sbi_multilevel.__file__).parent


def is_ours(error):
    """Whether a `raise` of this package raised a `ValueError` or `TypeError`."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(frame.filename)
    if PACKAGE not in path.parents or not isinstance(error, (ValueError, TypeError)):
        return False
    statements = ast.walk(ast.parse(path.read_text()))
    return any(
        isinstance(each, ast.Raise) and each.lineno <= frame.lineno <= each.end_lineno
        for each in statements
    )
