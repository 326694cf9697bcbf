"""How the bridge shows the router who it is.

The secret comes from the environment alone: Crossbar replaces ``$NAME`` in the principals of a
router, but not in a component's ``extra``, and ``extra`` is shown in logs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autobahn.wamp.auth import compute_wcs, derive_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autobahn.wamp.types import Challenge

__all__ = ["AUTHID_VARIABLE", "TICKET_VARIABLE", "Credentials"]

TICKET_VARIABLE = "TWISTEDCELERY_TICKET"
AUTHID_VARIABLE = "TWISTEDCELERY_AUTHID"


@dataclass(frozen=True, slots=True)
class Credentials:
    """One principal's name and its secret, for the methods ``ticket`` and ``wampcra``.

    :ivar secret: never part of the ``repr``
    """

    authid: str
    secret: str = field(repr=False)

    #: The router chooses one of them.
    methods = ("ticket", "wampcra")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Credentials | None:
        """``None`` where there is no secret: the bridge then joins as anybody."""
        secret = environ.get(TICKET_VARIABLE)
        return cls(environ.get(AUTHID_VARIABLE) or "bridge", secret) if secret else None

    def answer(self, challenge: Challenge) -> str:
        """What the router is sent.

        :raise ValueError: where it asks for a method that was not offered
        """
        if challenge.method == "ticket":
            return self.secret
        if challenge.method != "wampcra":
            raise ValueError(f"the router asks for {challenge.method!r:.40}, which was not offered")
        key = self.secret.encode()
        if "salt" in challenge.extra:
            key = derive_key(
                key, challenge.extra["salt"], challenge.extra["iterations"], challenge.extra["keylen"]
            )
        signature: bytes = compute_wcs(key, challenge.extra["challenge"].encode())
        return signature.decode("ascii")
