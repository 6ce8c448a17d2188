"""Simulations of several levels: containers, checks and preparation."""
