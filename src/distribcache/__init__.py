"""distribcache: a coherent cache in front of PostgreSQL."""

from importlib.metadata import version

__version__ = version("distribcache")
