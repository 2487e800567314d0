"""The quick reading of a client's messages says what the strict decoders say, also of broken ones."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from distribcache.errors import ProtocolError
from distribcache.proxy.group import parse_message, read_values
from distribcache.wire import messages as m

names = st.sampled_from([b"", b"s", b"a longer name"])
values = st.lists(st.none() | st.binary(max_size=6), max_size=3)
form = st.lists(st.integers(0, 2), max_size=3)
messages = st.one_of(
    st.builds(m.parse, names, names, st.lists(st.integers(0, 2**32 - 1), max_size=3)),
    st.builds(m.bind, names, names, form, values, form),
    st.builds(m.describe, st.sampled_from([b"S", b"P"]), names),
    st.builds(m.close, st.sampled_from([b"S", b"P"]), names),
    st.builds(m.execute, names, st.integers(-1, 5)),
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A message, as it is or with a byte changed, cut off, or added; its length is right in any case."""
    whole = draw(messages)
    body = bytearray(whole[5:])
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return m.message(whole[0], bytes(body))


def strict(message: bytes) -> object:
    """What ``parse_message`` has to find, by the decoders; None for a malformed message."""
    kind, body = message[0], message[5:]
    try:
        if kind == m.Front.PARSE:
            read = m.read_parse(body)
            return read.name, read.sql, read.oids
        if kind == m.Front.BIND:
            portal, name, rest = m.split_bind(message)
            return portal, name, len(rest)
        if kind == m.Front.EXECUTE:
            run = m.read_execute(body)
            return run.portal, run.max_rows
        target = m.read_describe(body) if kind == m.Front.DESCRIBE else m.read_close(body)
    except ProtocolError:
        return None
    return target.kind, target.name


@given(broken(), st.binary(max_size=3), st.binary(max_size=9))
@example(m.bind(b"", b"", [], [b"x"])[:-2] + b"\0", b"", b"\0\0\0")
@example(m.message(ord("D"), b""), b"", b"S\0")
def test_quick_and_strict_reading_agree(message: bytes, before: bytes, behind: bytes) -> None:
    data, start, end = before + message + behind, len(before), len(before) + len(message)
    read = parse_message(data, start, end)
    found = {
        m.Front.PARSE: (read.name, read.sql, read.oids),
        m.Front.BIND: (read.portal, read.name, end - read.tail),
        m.Front.EXECUTE: (read.name, read.limit),
    }.get(message[0], (read.target, read.name))
    assert (found if read.kind else None) == strict(message)
    if read.kind == m.Front.BIND:
        try:
            bind = m.read_bind(message[5:])
        except ProtocolError:
            assert read_values(data, read) is None
        else:
            assert read_values(data, read) == (list(bind.params), bind.param_formats, bind.result_formats)
