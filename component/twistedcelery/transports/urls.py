"""Checks the URLs of an application's settings, before something else reads them.

A password with an unescaped slash or number sign ends where a URL parser sees the end of the host: the
parser's error shows the first part, and the rest becomes the name of a database, which logs show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from twistedcelery.errors import ConfigurationError

__all__ = ["check_urls"]

_SETTINGS = ("broker_url", "broker_read_url", "broker_write_url", "result_backend")
_PARTS = re.compile(r"[^/]*://(?P<authority>[^/?#]*)(?P<path>[^?]*)(?P<query>.*)", re.DOTALL)


def check_urls(conf: Mapping[str, Any]) -> None:
    """Refuse URLs in which a password seems to be cut.

    :param conf: the application's settings
    :raises ConfigurationError: it names the setting, and shows nothing of the URL
    """
    for setting in _SETTINGS:
        value = conf.get(setting)
        for urls in [value] if isinstance(value, str) else (value or []):
            if any(map(_is_cut, str(urls).split(";"))):
                raise ConfigurationError(
                    f"{setting} cannot be used: it has an @ behind what looks like the end of the host. In "
                    "a user name or a password, write special characters percent-encoded: %2F for a slash, "
                    "%23 for a number sign, %3F for a question mark, %40 for an @"
                )


def _is_cut(url: str) -> bool:
    parts = _PARTS.match(url)
    if parts is None:
        return False
    _, colon, port = parts["authority"].rpartition(":")
    if not colon or "@" in parts["authority"]:
        return False
    # A query string may well have an @, behind a host with a port.
    return "@" in (parts["path"] if port.isdigit() else parts["path"] + parts["query"])
