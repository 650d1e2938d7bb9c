"""The one exception that bad data raises."""


class DataError(ValueError):
    """The data are wrong, or the request for them is; one line: where, what, what to do."""
