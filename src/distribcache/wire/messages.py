"""The vocabulary of the protocol in one place: type bytes, facts, decoders and encoders.

``Front`` and ``Back`` name the type bytes by who sends them, ``read_…`` turn the body of a whole message into a fact,
the functions without a prefix (``query``, ``bind``, ``data_row``, …) make whole messages.
"""

# ruff: noqa: F403
from distribcache.wire.codes import *
from distribcache.wire.decode import *
from distribcache.wire.encode import *
from distribcache.wire.facts import *
