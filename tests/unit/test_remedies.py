"""Each reason that is counted tells what to do."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

from distribcache.coherence import live, scope
from distribcache.coherence.reasons import REASONS
from distribcache.proxy import forward, large, lookup, questions, simple, standing
from distribcache.proxy.remedies import BYPASSES, REMEDIES, remedy
from distribcache.sql.cacheability import REFUSALS

GIVEN = re.compile(
    r'(?:Outcome\("(?:bypass|refused)", reason=|\breturn |\brefusal = |\bbypass or |\bbypass = |_refused\()'
    r'(?:refusal or )?"([a-z]+(?:_[a-z]+)*)"'
)


def test_what_is_refused_has_a_remedy() -> None:
    assert list(REMEDIES) == list(REFUSALS)
    assert not {*BYPASSES} & {*REASONS}


@pytest.mark.parametrize("module", [forward, large, live, lookup, questions, scope, simple, standing])
def test_so_has_what_is_passed_by(module: ModuleType) -> None:
    codes = set(GIVEN.findall(inspect.getsource(module)))
    assert codes, "the pattern finds nothing"
    assert {code for code in codes if not remedy(code)} == set()
    assert remedy("no_such_code") == ""


def test_a_remedy_has_nothing_left_to_be_filled_in() -> None:
    assert not any("{" in remedy(code) for code in (*REMEDIES, *BYPASSES, *REASONS))
