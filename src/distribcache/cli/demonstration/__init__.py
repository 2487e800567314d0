"""The parts of ``distribcache demo``: a shop, three stories about it, and how they are shown.

``dataset``   the shop's tables, filled on the server
``questions`` what the stories ask
``figures``   latencies, commits and how old an answer was; no IO
``client``    one connection and its stopwatch
``stories``   the clients, one thread each
``load``      the process that runs them
``children``  processes that never outlive the demo; ``tether`` is their side of it, ``node`` the cache among them
``stages``    what is said while it prepares
``view``      the live view and the progress lines
``summary``   what is said, or printed as JSON, at the end
"""
