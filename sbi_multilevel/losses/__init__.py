"""Losses and gradients over several levels; pure functions."""
