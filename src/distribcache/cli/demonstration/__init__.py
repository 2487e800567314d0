"""The parts of ``distribcache demo``: a shop, three stories about it, and how they are shown.

``dataset``   the shop's tables, filled on the server
``questions`` what the stories ask
``figures``   latencies, commits and how old an answer was; no IO
``stories``   the clients, one thread each
``load``      the process that runs them
``children``  starting processes that never outlive the demo
``view``      the live view and the progress lines
``summary``   what is said, or printed as JSON, at the end
"""
