"""Epochs as others may compare them (coherence rule R8): 16 bytes, equal only where positions mean the same.

The *server's epoch* names one database of one run of one server, and the format of the ledger. With the nonce of a
coverage it names what one ledger has followed without a hole.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import version

from distribcache.coherence.ledger import LEDGER_FORMAT
from distribcache.coherence.link import ServerIdentity

__all__ = ["digest", "server_epoch"]

VERSION = version("distribcache")


def digest(*fields: bytes) -> bytes:
    """16 bytes over fields, each with its length before it: no two lists of fields are joined alike."""
    joined = b"".join([len(field).to_bytes(8, "little") + field for field in fields])
    return blake2b(joined, digest_size=16).digest()


@lru_cache(maxsize=64)
def server_epoch(identity: ServerIdentity, row_slots: int) -> bytes:
    """The epoch that all nodes share which follow this database of this run of the server.

    The version of this package is a part of it: what an older one held to be cacheable is not asked of a newer one.
    """
    fields = (
        VERSION, identity.system_identifier, identity.timeline, identity.database_oid, identity.postmaster_start,
        LEDGER_FORMAT, row_slots,
    )  # fmt: skip
    return digest(*(str(field).encode() for field in fields))
