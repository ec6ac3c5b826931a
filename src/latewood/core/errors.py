"""Errors that a user can put right: each message is one sentence that says what was wrong, where, and what would be right."""

from __future__ import annotations


class LatewoodError(Exception):
    """Base of all errors that Latewood raises on purpose. Whatever was saved before it is untouched."""


class DataError(LatewoodError, ValueError):
    """The data is not what the learner, stream or probe can work with."""


class ConfigurationError(LatewoodError, ValueError):
    """A name, a parameter or a combination of them does not exist or does not fit."""


class CheckpointError(LatewoodError):
    """What lies on disk is missing, damaged, or belongs to something else."""


class StorageError(LatewoodError):
    """Writing failed (a full disk, missing permission); what was saved before is still whole."""
