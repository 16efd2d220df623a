"""The errors that this package raises on purpose.

Every message names what was given, what was expected and what to do.
"""


class CDRAError(ValueError):
    """Base of every error that the user can mend; tools print it as one line.

    Attributes:
        exit_code: What a tool ends with.
    """

    exit_code = 2


class ConfigError(CDRAError):
    """A setting is unknown, missing, or contradicts another one."""


class DataError(CDRAError):
    """A data set, image or label cannot be used as it is."""


class ScoreError(CDRAError):
    """Sensitivity scores cannot be computed, or mean nothing.

    Attributes:
        sample: Position of the sample at fault in the batches, None if it is not one sample.
    """

    def __init__(self, message: str, sample: int | None = None) -> None:
        super().__init__(message)
        self.sample = sample


class PlanError(CDRAError):
    """A plan cannot be made, read, or applied to this model."""


class CheckpointError(CDRAError):
    """A checkpoint or adapter file is damaged, foreign, or lacks its base weights."""


class HostError(CDRAError):
    """An installed package is of a release whose inner names are not known here."""


class DivergedError(CDRAError):
    """A run has ended because what it trains is no longer finite; its input was not wrong."""

    exit_code = 1
