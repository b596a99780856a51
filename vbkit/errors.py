"""Every error that vbkit raises on purpose.

A message says what was wrong, where, and what to do. The command line prints it as one line;
`UsageError` and its children end with exit status 2.
"""

from __future__ import annotations


class VbkitError(Exception):
    """Base class of all errors that vbkit raises on purpose."""


class UsageError(VbkitError):
    """The caller asked for something that cannot be: an unknown task, a bad option, no input."""


class OptionError(UsageError):
    """A `task.option=value` names no option, or its value has the wrong type."""


class ManifestError(UsageError):
    """A manifest cannot be read, lacks a column, or gives one id to two sources."""


class PluginError(VbkitError):
    """A plugin failed to import, to declare, or clashes with another."""


class MediaError(VbkitError):
    """A file is no video, sound or picture that can be decoded."""


class TranscriptError(VbkitError):
    """A transcript cannot be read."""


class SchemaError(VbkitError):
    """A table does not match the schema that its task declared."""


class StoreError(VbkitError):
    """A results folder cannot be read or written."""


class StoreLockedError(StoreError):
    """Another run is using the results folder."""


class ModelError(VbkitError):
    """A model bundle cannot be loaded, or cannot do what was asked of it."""


class FeatureError(VbkitError):
    """A head read an output of the encoder that its `TaskSpec.needs` does not declare."""


class CorpusError(VbkitError):
    """A training corpus cannot be made, read, or used with what it was given to."""


class TrainingError(VbkitError):
    """Training cannot go on: a loss that is not finite, or a run that cannot be resumed."""
