"""What is legal when: conversations that must pass, messages that must not."""

from __future__ import annotations

import pytest

from distribcache.errors import ProtocolError
from distribcache.wire.codes import Back, Front
from distribcache.wire.state import AUTHENTICATION_OK, CLIENT, SERVER, Phase, step

CLIENT_BYTES = {value for name, value in vars(Front).items() if name.isupper()}
SERVER_BYTES = {value for name, value in vars(Back).items() if name.isupper()}

# A conversation: messages of the client after ">", of the server after "<"; "*" stands for AuthenticationOk.
CONVERSATIONS = [
    ("scram", Phase.AUTHENTICATING, "<R >p <R >p <RN*SSSKZ", Phase.READY),
    ("old version", Phase.AUTHENTICATING, "<v*SKZ", Phase.READY),
    ("wrong password", Phase.AUTHENTICATING, "<R >p <E", Phase.CLOSED),
    ("too many connections", Phase.AUTHENTICATING, "<E", Phase.CLOSED),
    ("database missing", Phase.AUTHENTICATING, "<*E", Phase.CLOSED),
    ("simple", Phase.READY, ">Q <TDDCZ", Phase.READY),
    ("empty", Phase.READY, ">Q <IZ", Phase.READY),
    ("error", Phase.READY, ">Q <TDEZ", Phase.READY),
    ("set", Phase.READY, ">Q <SNCZ", Phase.READY),
    ("extended", Phase.READY, ">PBDES <12TDCZ", Phase.READY),
    ("describe and flush", Phase.READY, ">PDH <1tTZ", Phase.READY),
    ("no rows", Phase.READY, ">PBDES <12nCZ", Phase.READY),
    ("limit", Phase.READY, ">BES <2DsZ", Phase.READY),
    ("close", Phase.READY, ">CS <3Z", Phase.READY),
    ("function call", Phase.READY, ">F <VZ", Phase.READY),
    ("pipelined", Phase.READY, ">PBES >PBES <12DC", Phase.BUSY),
    ("copy in", Phase.READY, ">Q <G >ddc <CZ", Phase.READY),
    ("copy in, given up", Phase.READY, ">Q <G >df <EZ", Phase.READY),
    ("copy in that fails", Phase.READY, ">Q <G >d <E >dc <Z >d", Phase.READY),
    ("copy in, extended", Phase.READY, ">PBES <12G >HSdcS <CZ", Phase.READY),
    ("copy in before it is asked for", Phase.READY, ">Qddc <GCZ", Phase.READY),
    ("copy out", Phase.READY, ">Q <HddcCZ", Phase.READY),
    ("copy out, pipelined", Phase.READY, ">Q <Hd >PBES <dcC", Phase.BUSY),
    ("copy out that fails", Phase.READY, ">Q <HdEZ", Phase.READY),
    ("replication", Phase.READY, ">Q <Wdd >d <d >c <dcCZ", Phase.READY),
    ("replication, the server ends", Phase.READY, ">Q <Wdc >dc <TDCZ", Phase.READY),
    ("asynchronous", Phase.READY, "<ANS", Phase.READY),
    ("shutdown", Phase.READY, "<E", Phase.CLOSED),
    ("goodbye", Phase.READY, ">X", Phase.CLOSED),
]


@pytest.mark.parametrize(("name", "phase", "talk", "end"), CONVERSATIONS)
def test_conversations(name: str, phase: Phase, talk: str, end: Phase) -> None:
    for turn in talk.split():
        legal = CLIENT if turn[0] == ">" else SERVER
        for letter in turn[1:]:
            phase = step(legal, phase, AUTHENTICATION_OK if letter == "*" else ord(letter))
    assert phase is end


ILLEGAL = [
    (CLIENT, Phase.STARTUP, "QpXS"),
    (CLIENT, Phase.AUTHENTICATING, "QPBDECSHFdcf"),
    (CLIENT, Phase.STARTING, "QPBDECSHFdcfp"),
    (CLIENT, Phase.READY, "pRZT\0"),
    (CLIENT, Phase.BUSY, "pRZT\xff"),
    (CLIENT, Phase.COPY_IN, "QPBDECFp"),
    (CLIENT, Phase.COPY_BOTH, "QPBDECSHFfp"),
    (CLIENT, Phase.CLOSED, "QX"),
    (SERVER, Phase.STARTUP, "RZE"),
    (SERVER, Phase.AUTHENTICATING, "ZSKTDCA"),
    (SERVER, Phase.STARTING, "RTDC12v"),
    (SERVER, Phase.READY, "ZTDC123RKIstnGHWdcVv"),
    (SERVER, Phase.BUSY, "RKvdc"),
    (SERVER, Phase.COPY_IN, "dcTDZ12GHW"),
    (SERVER, Phase.COPY_OUT, "TDZC12GHW"),
    (SERVER, Phase.COPY_BOTH, "TDZC12GHW"),
    (SERVER, Phase.CLOSED, "ZE"),
]


@pytest.mark.parametrize(("legal", "phase", "letters"), ILLEGAL)
def test_out_of_order(legal: object, phase: Phase, letters: str) -> None:
    for letter in letters:
        with pytest.raises(ProtocolError):
            step(legal, phase, ord(letter))  # type: ignore[arg-type]


def test_tables_know_no_byte_that_does_not_exist() -> None:
    assert {kind for _, kind in CLIENT} <= CLIENT_BYTES
    assert {kind for _, kind in SERVER} - {AUTHENTICATION_OK} <= SERVER_BYTES
    # and every byte that exists is legal somewhere
    assert {kind for _, kind in CLIENT} == CLIENT_BYTES
    assert {kind for _, kind in SERVER} - {AUTHENTICATION_OK} == SERVER_BYTES


def test_success_of_authentication_is_never_taken_from_the_type_byte() -> None:
    assert step(SERVER, Phase.AUTHENTICATING, Back.AUTHENTICATION) is Phase.AUTHENTICATING
    assert step(SERVER, Phase.AUTHENTICATING, AUTHENTICATION_OK) is Phase.STARTING


def test_every_phase_can_be_reached() -> None:
    assert set(CLIENT.values()) | set(SERVER.values()) | {Phase.STARTUP} == set(Phase)
