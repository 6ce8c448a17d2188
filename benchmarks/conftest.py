"""Doctests of modules that need a package which is not installed are not collected."""

import importlib.util

collect_ignore = []
if importlib.util.find_spec("numba") is None:
    collect_ignore.append("sbi_multilevel_benchmarks/plasticity/network.py")
