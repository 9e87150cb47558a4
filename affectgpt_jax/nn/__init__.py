"""Leaf modules: they declare parameters as plain arrays; the mathematics lives in `ops`."""
