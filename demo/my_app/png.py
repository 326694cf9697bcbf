"""The smallest PNG encoder that a picture needs: 8 bits, red green blue, no filter."""

import struct
import zlib
from collections.abc import Sequence

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB = 2
_NO_FILTER = b"\0"


def encode(width: int, rows: Sequence[bytes]) -> bytes:
    """The PNG of ``rows``, from top to bottom, each of ``3 * width`` bytes."""
    header = struct.pack(">IIBBBBB", width, len(rows), 8, _RGB, 0, 0, 0)
    pixels = b"".join(_NO_FILTER + row for row in rows)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(pixels)), _chunk(b"IEND", b""))
    return _SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
