"""The rounds of all clients, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

from bench.client import Client
from bench.measurement import Measurement

__all__ = ["Comparison"]

Round = Mapping[Client, Measurement]


@dataclass(frozen=True)
class Comparison:
    """What was measured so far.

    :ivar baseline: the client whose CPU per call counts as 1
    """

    clients: tuple[Client, ...]
    baseline: Client
    rounds: tuple[Round, ...] = ()

    def with_round(self, measured: Round) -> Comparison:
        """Add one run of each client."""
        return replace(self, rounds=(*self.rounds, measured))

    def ratio(self, client: Client) -> float:
        """CPU per call as a part of the baseline's.

        The median of the ratios within a round: what else the machine does changes from round to
        round, and the clients of one round share it.
        """
        return median(
            measured[client].cpu_per_call / measured[self.baseline].cpu_per_call for measured in self.rounds
        )

    def last_round(self) -> str:
        """One line: microseconds of CPU per call in the round added last."""
        measured = self.rounds[-1]
        return ", ".join(f"{client.title} {measured[client].cpu_per_call:.0f} us" for client in self.clients)

    def table(self) -> str:
        """The medians and the ratios."""
        width = max(len(client.title) for client in self.clients)
        lines = [f"{'client':{width}}  us CPU a call  calls/s  ratio of CPU"]
        for client in self.clients:
            cpu = median(measured[client].cpu_per_call for measured in self.rounds)
            rate = median(measured[client].calls_per_second for measured in self.rounds)
            lines.append(f"{client.title:{width}}  {cpu:13.0f}  {rate:7.0f}  {self.ratio(client):12.2f}")
        return "\n".join(lines)
