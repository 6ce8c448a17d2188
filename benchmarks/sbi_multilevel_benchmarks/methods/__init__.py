"""Methods: modules that register their own; all modules here are imported."""

from sbi_multilevel_benchmarks.registry import load_modules

load_modules(__name__)
