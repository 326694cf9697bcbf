"""Authenticates the bridge to the router.

The secret comes only from the environment: Crossbar replaces ``$NAME`` in the principals of a router, but
not in a component's ``extra``, and it logs ``extra``.
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
    """A principal's name and secret, for the methods ``ticket`` and ``wampcra``.

    :ivar secret: not part of the ``repr``
    """

    authid: str
    secret: str = field(repr=False)

    #: The router chooses one.
    methods = ("ticket", "wampcra")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Credentials | None:
        """``None`` if there is no secret. The bridge then joins anonymously."""
        secret = environ.get(TICKET_VARIABLE)
        return cls(environ.get(AUTHID_VARIABLE) or "bridge", secret) if secret else None

    def answer(self, challenge: Challenge) -> str:
        """Sign a challenge of the router.

        :raise ValueError: if the router asks for a method that was not offered
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
