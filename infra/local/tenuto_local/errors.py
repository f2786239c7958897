"""The errors a person can meet when the embedded stack starts or runs.

LocalStackError
├── PrerequisiteMissing   a tool that must be on the machine is not, or is too old
├── FetchFailed           the jars could not be downloaded
├── ProcessFailed         a child process ended, or was not ready in time
└── ConfigurationError    a function, a port or an environment variable cannot be used as given

Every message is one that can be shown as it is: it says what happened and what to do. Owns no behaviour.
"""

from __future__ import annotations


class LocalStackError(Exception):
    """Base of everything `tenuto_local` raises on purpose."""


class PrerequisiteMissing(LocalStackError):
    """A tool the stack needs is missing or too old."""


class FetchFailed(LocalStackError):
    """The jars of a component could not be downloaded."""


class ProcessFailed(LocalStackError):
    """A child process ended early or was not ready in time; the message carries the end of its log."""


class ConfigurationError(LocalStackError):
    """Something the caller configured cannot be used."""
