"""How many hospitals a secure sum needs: to be made, and to be opened. What for: secure_sum.py. Pure."""

from __future__ import annotations

MIN_HOSPITALS = 3  # of two, each knows the other's part of a sum


def threshold(num_hospitals: int) -> int:
    """Return t: how many hospitals' shares give a secret back. More than half of the run's hospitals.

    >>> [threshold(n) for n in (3, 4, 5)]
    [2, 3, 3]
    """
    return num_hospitals // 2 + 1


def least_summands(num_hospitals: int, min_hospitals: int = 0) -> int:
    """Return of how many hospitals a sum must be made.

    Args:
        num_hospitals: Of the run.
        min_hospitals: The run-config key; 0 = three, or the threshold if that is more.

    >>> least_summands(3), least_summands(3, 2), least_summands(7)
    (3, 2, 4)
    """
    return max(min_hospitals or MIN_HOSPITALS, threshold(num_hospitals))
