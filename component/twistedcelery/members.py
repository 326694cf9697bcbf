"""The members of a group's result, as a collection that can change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["Members"]

T = TypeVar("T")


class Members(Generic[T]):
    """As Celery's ``ResultSet``; a result is equal to its id.

    :ivar results: the members
    """

    results: list[T]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[T]:
        return iter(self.results)

    def __getitem__(self, index: int) -> T:
        return self.results[index]

    def __bool__(self) -> bool:
        return True

    def add(self, result: T) -> None:
        """Add a member, unless it is one. Whoever waits already does not wait for it."""
        if result not in self.results:
            self.results.append(result)

    def update(self, results: Iterable[T]) -> None:
        """Add several members, as `add`."""
        for result in results:
            self.add(result)

    def remove(self, result: T | str) -> None:
        """Take out a member, itself or by its id.

        :raises KeyError: it is none
        """
        for number, member in enumerate(self.results):
            if member == result:
                del self.results[number]
                return
        raise KeyError(result)

    def discard(self, result: T | str) -> None:
        """Take out a member, if it is one."""
        with contextlib.suppress(KeyError):
            self.remove(result)

    def clear(self) -> None:
        """Take out all members."""
        self.results.clear()
