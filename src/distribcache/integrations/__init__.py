"""How frameworks read through the cache: one module per framework, imported by its users only."""
