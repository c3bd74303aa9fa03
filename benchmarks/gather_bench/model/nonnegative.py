"""Least squares in which nothing may be negative: no work takes less than no time."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ENOUGH = 1e-10
"""Of the largest gradient at the start: what is left to gain below it is rounding."""


def nonnegative_least_squares(matrix: Array, wanted: Array) -> Array:
    """Finds x >= 0 with the least |matrix x - wanted|, by the active sets of Lawson and Hanson.

    (Solving Least Squares Problems, 1974, chapter 23, as in scipy.optimize.nnls.)

    Args:
        matrix: Of shape (points, unknowns), float64.
        wanted: Of shape (points,), float64.
    """
    unknowns = matrix.shape[1]
    x = np.zeros(unknowns)
    free = np.zeros(unknowns, dtype=bool)
    gradient = matrix.T @ wanted
    enough = _ENOUGH * max(1.0, float(np.abs(gradient).max(initial=0.0)))
    for _ in range(3 * unknowns):  # it ends long before, but for rounding
        gradient = np.where(free, -np.inf, matrix.T @ (wanted - matrix @ x))
        if free.all() or gradient.max() <= enough:
            break
        free[gradient.argmax()] = True
        x = _solve_free(matrix, wanted, x, free)
    return x


def _solve_free(matrix: Array, wanted: Array, x: Array, free: NDArray[np.bool_]) -> Array:
    """Solves for what is free; what would become negative stops at zero and is free no more."""
    while True:
        solved = np.zeros_like(x)
        solved[free] = np.linalg.lstsq(matrix[:, free], wanted, rcond=None)[0]
        below = free & (solved <= 0)
        if not below.any():
            return solved
        step = (x[below] / (x[below] - solved[below])).min()
        x = np.maximum(x + step * (solved - x), 0)
        free &= ~(below & (x <= _ENOUGH * x.max(initial=0.0)))
