"""Type bytes of the protocol, as integers (``message[0]``), by who sends them.

One letter means different things in the two directions (``D`` is Describe from a client, DataRow from a server), so
there are two name spaces and no flat list.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Auth", "Back", "Front"]


class Front:
    """Messages that clients send."""

    BIND: Final = ord("B")
    CLOSE: Final = ord("C")
    COPY_DATA: Final = ord("d")
    COPY_DONE: Final = ord("c")
    COPY_FAIL: Final = ord("f")
    DESCRIBE: Final = ord("D")
    EXECUTE: Final = ord("E")
    FLUSH: Final = ord("H")
    FUNCTION_CALL: Final = ord("F")
    PARSE: Final = ord("P")
    PASSWORD: Final = ord("p")  # also SASLInitialResponse, SASLResponse and GSSResponse
    QUERY: Final = ord("Q")
    SYNC: Final = ord("S")
    TERMINATE: Final = ord("X")


class Back:
    """Messages that servers send."""

    AUTHENTICATION: Final = ord("R")
    BACKEND_KEY_DATA: Final = ord("K")
    BIND_COMPLETE: Final = ord("2")
    CLOSE_COMPLETE: Final = ord("3")
    COMMAND_COMPLETE: Final = ord("C")
    COPY_BOTH: Final = ord("W")
    COPY_DATA: Final = ord("d")
    COPY_DONE: Final = ord("c")
    COPY_IN: Final = ord("G")
    COPY_OUT: Final = ord("H")
    DATA_ROW: Final = ord("D")
    EMPTY_QUERY: Final = ord("I")
    ERROR: Final = ord("E")
    FUNCTION_CALL: Final = ord("V")
    NEGOTIATE_VERSION: Final = ord("v")
    NO_DATA: Final = ord("n")
    NOTICE: Final = ord("N")
    NOTIFICATION: Final = ord("A")
    PARAMETER_DESCRIPTION: Final = ord("t")
    PARAMETER_STATUS: Final = ord("S")
    PARSE_COMPLETE: Final = ord("1")
    PORTAL_SUSPENDED: Final = ord("s")
    READY_FOR_QUERY: Final = ord("Z")
    ROW_DESCRIPTION: Final = ord("T")


class Auth:
    """Codes inside an Authentication message."""

    OK: Final = 0
    KERBEROS_V5: Final = 2
    CLEARTEXT: Final = 3
    MD5: Final = 5
    GSS: Final = 7
    GSS_CONTINUE: Final = 8
    SSPI: Final = 9
    SASL: Final = 10
    SASL_CONTINUE: Final = 11
    SASL_FINAL: Final = 12
