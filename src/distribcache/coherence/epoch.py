"""Epochs as others may compare them (coherence rule R8): 16 bytes, equal only where positions mean the same.

The *server's epoch* names one database of one run of one server, and the format of the ledger. With the nonce of a
coverage it names what one ledger has followed without a hole.
"""

from __future__ import annotations

from hashlib import blake2b

from distribcache.coherence.ledger import LEDGER_FORMAT, Ledger
from distribcache.coherence.link import ServerIdentity

__all__ = ["digest", "server_epoch"]


def digest(*fields: bytes) -> bytes:
    """16 bytes over fields, each with its length before it: no two lists of fields are joined alike."""
    joined = b"".join([len(field).to_bytes(8, "little") + field for field in fields])
    return blake2b(joined, digest_size=16).digest()


def server_epoch(identity: ServerIdentity, ledger: Ledger) -> bytes:
    """The epoch that all nodes share which follow this database of this run of the server."""
    return digest(
        identity.system_identifier.encode(),
        str(identity.timeline).encode(),
        str(identity.database_oid).encode(),
        identity.postmaster_start.encode(),
        str(LEDGER_FORMAT).encode(),
        str(ledger.row_slots).encode(),
    )
