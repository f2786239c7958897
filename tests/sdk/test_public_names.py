"""What `tenuto` exports is what it has, and what it has is meant.

Owns the comparison of `__all__` with the package's real names.
"""

from __future__ import annotations

import inspect

import tenuto
from tenuto import errors

INTERNAL_ERRORS = {"FencedError", "ProtocolError", "Suspension"}


def test_every_public_name_is_exported_and_every_export_exists() -> None:
    real = {name for name, value in vars(tenuto).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert real - {"annotations"} == set(tenuto.__all__)


def test_exports_are_sorted_and_named_once() -> None:
    assert list(tenuto.__all__) == sorted(set(tenuto.__all__))


def test_every_error_a_handler_may_meet_is_exported() -> None:
    assert set(errors.__all__) - INTERNAL_ERRORS <= set(tenuto.__all__)


def test_every_export_says_what_it_is() -> None:
    assert [name for name in tenuto.__all__ if not inspect.getdoc(getattr(tenuto, name))] == []


def test_public_methods_say_what_they_do() -> None:
    silent = [
        f"{name}.{method}"
        for name in tenuto.__all__
        if inspect.isclass(kind := getattr(tenuto, name))
        for method, function in inspect.getmembers(kind, inspect.isfunction)
        if not method.startswith("_") and not inspect.getdoc(function)
    ]
    assert silent == []
