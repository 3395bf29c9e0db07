"""YAML presets, read as package data (importlib.resources)."""
