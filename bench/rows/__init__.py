"""The table of rows, each family of them in a module."""

from bench.row import Family
from bench.rows import bridge, calls, flower, growth, lateness, solo

__all__ = ["FAMILIES"]

#: In the order in which they run, and stand in the table.
FAMILIES: tuple[Family, ...] = (
    *calls.FAMILIES,
    *solo.FAMILIES,
    *bridge.FAMILIES,
    *flower.FAMILIES,
    *growth.FAMILIES,
    *lateness.FAMILIES,
)
