"""Simulations of several levels: what they are, what is checked, how they are prepared."""
