"""Messages: the table both ways, every prefix, trailing bytes, limits of the encoders, secrets in repr."""

from __future__ import annotations

import pytest
from wire_cases import CASES, OPEN_ENDED, READABLE, Case

from distribcache.errors import ProtocolError
from distribcache.wire import messages as m


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_encodes_as_documented(case: Case) -> None:
    assert case.made == case.wire


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("case", READABLE, ids=repr)
def test_decodes_as_documented(case: Case, view: type) -> None:
    assert case.read is not None
    assert case.read(view(case.wire[5:])) == case.fact


@pytest.mark.parametrize("case", READABLE, ids=repr)
def test_every_prefix_of_a_body_is_refused(case: Case) -> None:
    assert case.read is not None
    body = case.wire[5:]
    for cut in range(len(body)):
        if case.read in OPEN_ENDED:
            try:
                case.read(body[:cut])
            except ProtocolError:
                continue
        else:
            with pytest.raises(ProtocolError):
                case.read(body[:cut])


@pytest.mark.parametrize("case", [c for c in READABLE if c.read not in OPEN_ENDED], ids=repr)
@pytest.mark.parametrize("extra", [b"\0", b"x", b"\0\0\0\0", b"Q\0\0\0\4"])
def test_left_over_bytes_are_refused(case: Case, extra: bytes) -> None:
    assert case.read is not None
    with pytest.raises(ProtocolError):
        case.read(case.wire[5:] + extra)


LENGTHS = [b"\xff\xff\xff\xfe", b"\x80\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\2", b"\0\1\0\0"]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_value_longer_than_its_message_is_refused(length: bytes) -> None:
    for read, body in [
        (m.read_data_row, b"\0\1" + length + b"x"),
        (m.read_bind, b"\0\0\0\0\0\1" + length + b"x"),
        (m.read_sasl_initial, b"SCRAM\0" + length + b"x"),
    ]:
        with pytest.raises(ProtocolError):
            read(body)


def test_a_count_is_checked_before_it_is_believed() -> None:
    for read, body in [
        (m.read_data_row, b"\xff\xff"),
        (m.read_row_description, b"\xff\xff"),
        (m.read_parse, b"\0\0\xff\xff"),
        (m.read_bind, b"\0\0\xff\xff"),
        (m.read_parameter_description, b"\xff\xff\0\0\0\0"),
        (m.read_negotiate_version, b"\0\0\0\0\x7f\xff\xff\xff"),
        (m.read_negotiate_version, b"\0\0\0\0\xff\xff\xff\xff"),
    ]:
        with pytest.raises(ProtocolError):
            read(body)


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (m.read_describe, b"X\0"),
        (m.read_close, b"\0\0"),
        (m.read_ready_for_query, b"X"),
        (m.read_bind, b"\0\0\0\1\0\2\0\0\0\0"),  # format 2
        (m.read_bind, b"\0\0\0\2\0\0\0\1\0\1\xff\xff\xff\xff\0\0"),  # two formats for one parameter
        (m.read_authentication, b"\0\0\0\0x"),
        (m.read_authentication, b"\0\0\0\5abc"),
        (m.read_backend_key_data, b"\0\0\0\1"),
        (m.read_backend_key_data, b"\0\0\0\1" + b"k" * 257),
        (m.read_authentication, b"\0\0\0\x0b" + b"r" * m.MAX_SASL),
        (m.read_password, b"p" * (m.MAX_SASL + 1)),
        (m.read_sasl_initial, b"p" * (m.MAX_SASL + 1)),
    ],
)
def test_values_that_do_not_exist_are_refused(read: object, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(body)  # type: ignore[operator]


def test_a_long_server_nonce_fits() -> None:
    body = b"\0\0\0\x0br=" + b"n" * 4000
    assert m.read_authentication(body).data == b"r=" + b"n" * 4000


def test_the_offer_without_channel_binding() -> None:
    offer = m.authentication_sasl([b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"])
    names = m.read_sasl_mechanisms(m.read_authentication(offer[5:]).data)
    assert names == (b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256")
    narrowed = m.authentication_sasl(name for name in names if not name.endswith(b"-PLUS"))
    assert narrowed == b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"


@pytest.mark.parametrize("data", [b"", b"SCRAM\0", b"SCRAM", b"\0x", b"A\0\0B\0\0"])
def test_a_broken_offer_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        m.read_sasl_mechanisms(data)


def test_split_bind_gives_the_names_and_the_rest() -> None:
    whole = m.bind(b"portal", b"stmt", [1], [b"a\0b", None], [1])
    portal, statement, rest = m.split_bind(whole)
    assert (portal, statement) == (b"portal", b"stmt")
    assert b"B" + whole[1:5] + portal + b"\0" + statement + b"\0" + rest == whole


@pytest.mark.parametrize("whole", [b"", b"B\0\0\0\4", b"B\0\0\0\7abc", b"B\0\0\0\6a\0", b"B\0\0\0\7a\0b"])
def test_split_bind_refuses_names_without_end(whole: bytes) -> None:
    with pytest.raises(ProtocolError):
        m.split_bind(whole)


def test_an_error_without_any_field_is_read() -> None:
    error = m.read_error(b"\0")
    assert (error.severity, error.sqlstate, error.text) == ("", "", "")


def test_texts_of_an_error_that_are_not_utf8_are_read() -> None:
    assert m.read_error(b"M\xfft\0\0").text == "\ufffdt"


def test_severity_prefers_the_field_that_is_never_translated() -> None:
    assert m.read_error(b"SFEHLER\0VERROR\0\0").severity == "ERROR"


def test_an_error_of_ours_is_always_sent() -> None:
    sent = m.error_response("ERROR", "XX000", "a\0b\ud800", hint="")
    assert m.read_error(sent[5:]).text == "a\ufffdb?"


@pytest.mark.parametrize(
    "make",
    [
        lambda: m.query(b"a\0b"),
        lambda: m.parse(b"a\0b", b""),
        lambda: m.parse(b"", b"", [-1]),
        lambda: m.parse(b"", b"", [2**32]),
        lambda: m.parse(b"", b"", [0] * 65536),
        lambda: m.bind(b"", b"", [2**15]),
        lambda: m.bind(b"", b"", [], [None] * 65536),
        lambda: m.describe(b"X", b""),
        lambda: m.close(b"", b""),
        lambda: m.execute(b"", 2**31),
        lambda: m.command_complete(b"a\0"),
        lambda: m.ready_for_query(b"X"),
        lambda: m.data_row([None] * 65536),
        lambda: m.backend_key_data(2**31, b"abcd"),
    ],
)
def test_encoders_refuse_what_the_wire_cannot_carry(make: object) -> None:
    with pytest.raises(ProtocolError):
        make()  # type: ignore[operator]


class Huge(bytes):
    """Claims a length without having it."""

    claimed = 2**30

    def __len__(self) -> int:
        return self.claimed

    def __contains__(self, item: object) -> bool:
        return False


@pytest.mark.parametrize("claimed", [2**30 - 4, 2**31, 2**32 + 5])
def test_encoders_refuse_a_message_over_1_gib(monkeypatch: pytest.MonkeyPatch, claimed: int) -> None:
    monkeypatch.setattr(Huge, "claimed", claimed)
    for make in (m.copy_data, m.password, lambda data: m.data_row([data]), lambda data: m.bind(b"", b"", [], [data])):
        with pytest.raises(ProtocolError, match="limit"):
            make(Huge())


def test_secrets_do_not_show() -> None:
    shown = repr(
        [
            m.Password(b"geheim"),
            m.SaslInitial(b"SCRAM-SHA-256", b"geheim"),
            m.Authentication(11, b"geheim"),
            m.BackendKeyData(1, b"geheim"),
            m.Bind(b"", b"", (), (b"geheim",), ()),
            m.DataRow((b"geheim",)),
        ]
    )
    assert "geheim" not in shown
    assert "<secret>" in shown


def test_errors_do_not_contain_what_was_sent() -> None:
    for read in (m.read_password, m.read_sasl_initial):
        with pytest.raises(ProtocolError) as caught:
            read(b"geheim" * 2000)
        assert "geheim" not in str(caught.value)
