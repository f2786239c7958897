"""The page about the SDK says what the code does, and no public name is undocumented.

Owns the comparison, and that a missing text is found. Does not own the page, which `tools/document_sdk.py` writes.
"""

from __future__ import annotations

import textwrap

import pytest

from tools import document_sdk as documented


def test_every_public_name_is_documented() -> None:
    assert documented.missing() == []


def test_the_committed_page_is_the_generated_one() -> None:
    assert documented.PAGE.read_text("utf-8") == documented.page(), "run `python tools/document_sdk.py`"


def test_every_public_name_and_member_has_a_place() -> None:
    text = documented.page()
    for module in documented.MODULES:
        for name in documented.exported(module):
            found = documented.public_of(module, name)
            assert name in {"Context", "ObjectContext", "ObjectSharedContext"} or f"#### `{name}`" in text
            if isinstance(found, type) and name != "RealEnvironment":
                assert [
                    one for one in documented.members(found) if f"`{one}`" not in text and f".{one}`" not in text
                ] == []


def test_what_the_runtime_keeps_to_itself_exists() -> None:
    classes = {
        name: documented.public_of(module, name)
        for module in documented.MODULES
        for name in documented.exported(module)
    }
    unknown = [
        f"{name}.{one}"
        for name, hidden in documented.INTERNAL.items()
        for one in hidden
        if not known(classes[name], one)
    ]
    assert unknown == []


def known(kind: type, name: str) -> bool:
    """Whether a class has a member: a method, a field, or what its constructor sets."""
    return (
        hasattr(kind, name)
        or name in getattr(kind, "__annotations__", {})
        or f"self.{name}" in documented.source_of(kind)
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda m: m.setattr("tenuto.__all__", [*documented.exported(documented.MODULES[0]), "logs"]),
            "tenuto.logs: not on",
        ),
        (lambda m: m.setattr("tenuto.TerminalError.__doc__", None), "tenuto.TerminalError: no docstring"),
        (lambda m: m.setattr("tenuto.idempotency_key.__doc__", None), "tenuto.idempotency_key: no docstring"),
    ],
    ids=["name", "class", "function"],
)
def test_a_name_without_a_text_is_found(monkeypatch: pytest.MonkeyPatch, change: object, told: str) -> None:
    assert callable(change)
    change(monkeypatch)
    (first, *_) = documented.missing()
    assert first.startswith(told)


def test_a_member_and_a_parameter_without_a_text_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    source = '''
    class Example:
        """A class."""

        size: int = 0

        def method(self, *, option: int = 0) -> int:
            """Do it."""
    '''
    made = type("Example", (), {"__doc__": "A class.", "__module__": "tenuto.example"})
    monkeypatch.setattr(documented, "source_of", lambda _kind: textwrap.dedent(source))
    assert list(documented._undocumented("tenuto.Example", made)) == [
        "tenuto.Example.size: no docstring",
        "tenuto.Example.method: the parameter option is not explained",
    ]
