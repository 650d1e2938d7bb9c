"""The one exception that bad data raises."""

from megatron.errors import UserError


class DataError(UserError):
    """The data, or what was asked of them, are wrong; one line: where, what, what to do."""
