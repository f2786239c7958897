"""A Lambda function that cannot be imported."""

import there_is_no_such_module  # type: ignore[import-not-found] # its absence is the point


def handler(event: object, context: object) -> object:
    return there_is_no_such_module
