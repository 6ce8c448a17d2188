"""Diagnostics of what the lower levels are worth; all of it is pure."""

from sbi_multilevel.diagnostics.effective_rows import EffectiveRows, effective_rows

__all__ = ["EffectiveRows", "effective_rows"]
