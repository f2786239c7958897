"""A project of one's own, outside of the repository and made from the wheel: as far as SAM, type checkers and AWS.

Run by `make test-localstack`, since its tests take minutes.
"""
