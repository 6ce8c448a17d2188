"""Tasks: a module that registers its own each; all modules here are imported."""

from sbi_multilevel_benchmarks.registry import load_modules

load_modules(__name__)
