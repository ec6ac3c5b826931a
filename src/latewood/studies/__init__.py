"""Protocols over many runs, and the assembly of a run from names and settings."""
