"""The one exception that bad data raises."""

from megatron.errors import UserError


class DataError(UserError):
    """The data are wrong, or the request for them is; one line: where, what, what to do."""
