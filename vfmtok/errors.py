"""Errors a user can cause and mend. The command line prints them as one line and exits with 2."""

import os


class VFMTokError(Exception):
    """Base of the errors below; its text is one clear line."""


class ConfigError(VFMTokError):
    """A configuration file, key, value or combination of values that can't be used."""


class WeightsError(VFMTokError):
    """Weights that are missing, of another model, or not what their hash says."""


class DataError(VFMTokError):
    """A dataset, record or image source that is missing, incomplete, damaged or not what it was."""


class EvaluationError(VFMTokError):
    """Samples, features or statistics that no trustworthy number can be computed from."""


class SharedError(VFMTokError):
    """Raised by every rank at the same point; only rank 0 prints it."""


def is_printed_here(error: VFMTokError) -> bool:
    """Whether this process is the one to print ``error``."""
    return int(os.environ.get("RANK", 0)) == 0 or not isinstance(error, SharedError)
