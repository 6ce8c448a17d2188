"""Which level map fits the simulations at hand."""
