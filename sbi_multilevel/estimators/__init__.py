"""Density estimators of sbi, transformed or mixed."""
