"""The one exception that bad data raises."""


class DataError(ValueError):
    """The data, or what was asked of them, are wrong; one line: where, what, what to do."""
