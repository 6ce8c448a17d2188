"""Training of one network on simulations of several levels."""
