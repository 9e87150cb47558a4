"""Folders that other libraries open."""
