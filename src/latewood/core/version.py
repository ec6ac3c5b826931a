"""The version of Latewood, where the core can read it without importing the package around it."""

__version__ = "0.1.0"
