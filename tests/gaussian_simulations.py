"""Simulations of two levels that are Gaussian given theta."""

import numpy as np

from sbi_multilevel.level_maps.arrays import LevelArrays

LOW_COVARIANCE = np.array([[1.0, 0.3], [0.3, 0.5]])
HIGH_COVARIANCE = np.array([[0.6, -0.4], [-0.4, 2.0]])
LOW_SLOPE = np.array([[1.0, 0.0], [0.5, 1.0]])
HIGH_SLOPE = np.array([[1.4, -0.3], [0.2, 1.0]])
HIGH_SHIFT = np.array([2.0, -1.0])


def normal_noise(generator, covariance, n):
    """Normal variables of mean 0, equal on all processors.

    The Cholesky factor is unique, but the singular vectors that `multivariate_normal`
    uses are not.
    """
    variables = generator.normal(size=(n, len(covariance)))
    return variables @ np.linalg.cholesky(covariance).T


def gaussian_simulations(n, slope, shift, covariance, seed):
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, 2))
    noise = normal_noise(generator, covariance, n)
    return LevelArrays(theta, theta @ slope.T + shift + noise)


def low_simulations(n=4_000):
    return gaussian_simulations(n, LOW_SLOPE, np.zeros(2), LOW_COVARIANCE, seed=0)


def high_simulations(n):
    return gaussian_simulations(n, HIGH_SLOPE, HIGH_SHIFT, HIGH_COVARIANCE, seed=1)


def scaled_simulations(n, log_scale, seed):
    generator = np.random.default_rng(seed)
    theta = generator.uniform(-1, 1, size=(n, 1))
    noise = generator.normal(size=(n, 2)) * [1.0, 10.0]
    return LevelArrays(theta, theta + np.exp(log_scale(theta)) * noise)


def correlation(rho):
    return np.array([[1.0, rho], [rho, 1.0]])
