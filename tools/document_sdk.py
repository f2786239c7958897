# ruff: noqa: INP001 - tools are run as files, not imported as a package
"""Writes `docs/reference/sdk.md` from the public names of `tenuto`, `tenuto.aws`, `tenuto.testing` and the plugin.

    python tools/document_sdk.py           # write the page
    python tools/document_sdk.py --check   # exit 1 when the page differs from the code

Owns the order of the page and the members of public classes that are for the runtime alone. Signatures, fields and
texts come from the code. A public name without a place here or without a docstring is an error.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_origin

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "reference" / "sdk.md"
COLUMNS_MAX: Final = 100
"""Columns of a signature on one line; a longer one has a line for each parameter."""

Function = ast.FunctionDef | ast.AsyncFunctionDef

KINDS: Final = ("ServiceHandler", "ObjectHandler", "SharedHandler")
"""Classes of handlers, whose members the page shows once, at `Handler`."""

INTERNAL: Final[Mapping[str, frozenset[str]]] = {
    "BadInputError": frozenset({"naming"}),
    "DurableFuture": frozenset(
        {"add_done_callback", "awaited", "awaited_as", "call", "complete", "join", "slot_of", "value"}
    ),
    "Handler": frozenset({"encode", "function", "spec"}),
    **dict.fromkeys(KINDS, frozenset({"encode", "function", "kind", "name", "service", "spec", "target"})),
    "InvocationRetryPolicy": frozenset({"wire"}),
    "RunOptions": frozenset({"limits"}),
    "UnserialisableError": frozenset({"naming"}),
}
"""Members of public classes that the runtime uses and a project does not."""

MADE_BY_TENUTO: Final = frozenset(
    {
        "Context",
        "CrashReport",
        "DeadLetter",
        "DurableFuture",
        "Handler",
        "Invocation",
        "JournalEntry",
        "KafkaOrigin",
        "ObjectContext",
        "ObjectSharedContext",
        *KINDS,
        "Operation",
        "Record",
        "Replayed",
        "Request",
    }
)
"""Classes that a project receives and never constructs: the page shows no constructor."""


@dataclass(frozen=True, slots=True)
class Section:
    """Names of one module that belong together. `union` shows the members of several classes as one list."""

    title: str
    names: Sequence[str]
    about: str = ""
    union: bool = False


@dataclass(frozen=True, slots=True)
class Module:
    """A module that users import from. `also` are its public names where it has no `__all__`."""

    name: str
    about: str
    sections: Sequence[Section]
    also: Sequence[str] = field(default=())


MODULES: Final = (
    Module(
        "tenuto",
        "What handlers need. [Handlers](../guides/handlers.md) explains it with examples.",
        (
            Section("Services and handlers", ("Service", "VirtualObject", "InvocationRetryPolicy", "Handler", *KINDS)),
            Section(
                "Contexts",
                ("Context", "ObjectContext", "ObjectSharedContext"),
                "The first argument of a handler. Its class depends on the kind of the handler.",
                union=True,
            ),
            Section("Steps", ("RunOptions", "idempotency_key")),
            Section("Futures", ("DurableFuture", "gather")),
            Section("Requests", ("Request", "KafkaOrigin")),
            Section(
                "Errors",
                (
                    "TenutoError",
                    "TerminalError",
                    "RetryableError",
                    "BadInputError",
                    "InvalidArgumentError",
                    "StateTooLargeError",
                    "UnserialisableError",
                    "JournalMismatchError",
                ),
                "Any other exception that leaves a handler fails the attempt, and the retry policy decides when the "
                "next one starts: [errors and retries](../guides/errors_and_retries.md).",
            ),
            Section(
                "Serialisation",
                ("Serde", "JsonSerde", "BytesSerde"),
                "Type hints choose the serde; [values](../guides/handlers.md#how-values-are-written) lists the types.",
            ),
            Section("Logs", ("InvocationLogFilter",)),
        ),
    ),
    Module(
        "tenuto.aws",
        "The entry point on AWS Lambda.",
        (Section("Lambda handler", ("handler",)),),
        also=("handler",),
    ),
    Module(
        "tenuto.testing",
        "Tests of handlers in one process and in virtual time. [Testing](../guides/testing.md) explains it with "
        "examples.",
        (
            Section(
                "Environments",
                ("Environment", "RealEnvironment"),
                "`RealEnvironment` has the methods `call`, `send`, `result`, `event`, `resolve_awakeable`, "
                "`reject_awakeable`, `state`, `published` and `dead_letters` of `Environment`, and its own.",
            ),
            Section("Operations", ("Operation",)),
            Section("Results", ("Invocation", "Record", "DeadLetter", "JournalEntry", "CrashReport", "Replayed")),
            Section(
                "Errors of the test kit",
                (
                    "HarnessError",
                    "NoSuchHandlerError",
                    "StillWaitingError",
                    "KeepsFailingError",
                    "NothingWaitsError",
                    "HungError",
                    "OutcomesDifferError",
                ),
                "`HarnessError` is an AssertionError, and the base class of the others.",
            ),
        ),
    ),
    Module(
        "tenuto.pytest_plugin",
        "Fixtures that `pytest` finds in every project that has tenuto installed. Nothing is imported from here.",
        (Section("Fixtures", ("tenuto_env", "tenuto_services", "tenuto_topics")),),
        also=("tenuto_env", "tenuto_services", "tenuto_topics"),
    ),
)

INTRODUCTION: Final = (
    "# SDK",
    "",
    "<!-- Written by tools/document_sdk.py: change the docstrings or the tool, and run it. -->",
    "",
    "Every public name of the Python package: what can be imported from `tenuto`, `tenuto.aws` and",
    "`tenuto.testing`, and the fixtures of the pytest plugin. Other modules and names are internal and may change in",
    "any release.",
    "",
    "In signatures, `Duration` is a `timedelta` or a number of seconds, and an `AwakeableFuture` is a `DurableFuture`.",
    "`I` and `O` are the types of a handler's input and result, `T` is the type of a value. `DeclaresService`,",
    "`DeclaresObject` and `DeclaresShared` are decorators: they make a `ServiceHandler`, an `ObjectHandler` or a",
    "`SharedHandler` of an async function. A method that returns a future or an `Operation` raises some errors when it",
    "is called, and others when the result is awaited.",
    "",
)


@dataclass(frozen=True, slots=True)
class Member:
    """A documented part of a class or module: its text, and its signature or type."""

    name: str
    doc: str
    signatures: tuple[str, ...] = ()
    kind: str = ""
    default: str | None = None


# --- reading the code ------------------------------------------------------------------------------------------------


def exported(module: Module) -> set[str]:
    """The public names of a module."""
    return set(getattr(importlib.import_module(module.name), "__all__", module.also))


def public_of(module: Module, name: str) -> Any:
    """The object that a public name stands for."""
    found = getattr(importlib.import_module(module.name), name)
    # A fixture is a wrapper of its function.
    return getattr(found, "__wrapped__", None) or getattr(found, "__pytest_wrapped__", found)


def members(kind: type) -> dict[str, Member]:
    """The public members of a class, those of its bases included: fields, properties and methods."""
    hidden = INTERNAL.get(kind.__name__, frozenset())
    found: dict[str, Member] = {}
    for base in reversed(_own_bases(kind)):
        for member in _members_of(_tree(base)):
            found[member.name] = member
    return {name: one for name, one in found.items() if name not in hidden and not name.startswith("_")}


def _own_bases(kind: type) -> list[type]:
    """A class and its bases, without those of other packages."""
    return [one for one in kind.__mro__ if one.__module__.split(".")[0] == "tenuto"]


def source_of(kind: type) -> str:
    """The source of a class."""
    return textwrap.dedent(inspect.getsource(kind))


@functools.cache
def _tree(kind: type) -> ast.ClassDef:
    found = ast.parse(source_of(kind)).body[0]
    assert isinstance(found, ast.ClassDef)
    return found


def _members_of(tree: ast.ClassDef) -> Iterator[Member]:
    overloads: dict[str, list[str]] = {}
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                default = None if node.value is None else _text(node.value)
                if default is not None and "init=False" in default:
                    default = None
                yield Member(name, _text_after(after), kind=_text(node.annotation), default=default)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                decorators = {ast.unparse(one) for one in node.decorator_list}
                if "overload" in decorators:
                    overloads.setdefault(node.name, []).append(signature(node))
                    continue
                if "property" in decorators:
                    kind = "" if node.returns is None else _text(node.returns)
                    yield Member(node.name, ast.get_docstring(node) or "", kind=kind)
                    continue
                shown = overloads.get(node.name) or [signature(node)]
                yield Member(node.name, ast.get_docstring(node) or "", signatures=tuple(shown))
            case _:
                pass


def _text(node: ast.expr) -> str:
    """An expression as formatted code, with double quotes."""
    return ast.unparse(node).replace("'", '"')


def _text_after(node: ast.stmt | None) -> str:
    """The docstring of a field: the text that stands right after it."""
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return inspect.cleandoc(text)
        case _:
            return ""


def signature(node: Function, called: str | None = None) -> str:
    """A function's signature as a stub, without `self`."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    first = 1 if positional and positional[0].arg == "self" else 0
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + [*arguments.defaults]
    shown: list[str] = []
    for index, (one, default) in enumerate(zip(positional, defaults, strict=True)):
        if index >= first:
            shown.append(_parameter(one, default))
        if index + 1 == len(arguments.posonlyargs) and shown:
            shown.append("/")
    if arguments.vararg:
        shown.append("*" + _parameter(arguments.vararg, None))
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += [
        _parameter(one, default) for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        shown.append("**" + _parameter(arguments.kwarg, None))
    returns = "" if node.returns is None or called else f" -> {_text(node.returns)}"
    start = called or f"{'async ' if isinstance(node, ast.AsyncFunctionDef) else ''}def {node.name}"
    end = returns if called else f"{returns}: ..."
    return _fitted(start, shown, end)


def _fitted(start: str, parameters: Sequence[str], end: str) -> str:
    """A signature on one line, or with a line for each parameter."""
    line = f"{start}({', '.join(parameters)}){end}"
    if len(line) <= COLUMNS_MAX or not parameters:
        return line
    return f"{start}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){end}"


def _parameter(one: ast.arg, default: ast.expr | None) -> str:
    text = one.arg if one.annotation is None else f"{one.arg}: {_text(one.annotation)}"
    if default is None:
        return text
    return f"{text}{' = ' if one.annotation else '='}{_text(default)}"


def constructor(kind: type) -> str | None:
    """How a class is constructed; None where a project never constructs it."""
    if kind.__name__ in MADE_BY_TENUTO or getattr(kind, "_is_protocol", False):
        return None
    for base in kind.__mro__:
        if base.__module__.split(".")[0] != "tenuto":
            break
        for node in _tree(base).body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return _with_values(signature(node, kind.__name__), base.__module__)
    fields = [one for one in members(kind).values() if one.kind and not one.signatures]
    own = [one for one in fields if _constructed(kind, one.name)]
    if not own:
        return None
    shown = [f"{one.name}: {one.kind}" + ("" if one.default is None else f" = {_plain_default(one)}") for one in own]
    return _fitted(kind.__name__, shown, "")


def _with_values(text: str, module: str) -> str:
    """A signature whose defaults are values rather than names of constants."""
    constants = vars(sys.modules[module])
    return re.sub(r"(?<== )[A-Z][A-Z_]+\b", lambda found: repr(constants[found[0]]), text)


def _constructed(kind: type, name: str) -> bool:
    fields: Mapping[str, Any] = getattr(kind, "__dataclass_fields__", {})
    return name in fields and fields[name].init


def _plain_default(member: Member) -> str:
    """A default in a reader's words: a field's factory is called."""
    text = member.default or ""
    start = "field(default_factory="
    if text.startswith(start):
        return text[len(start) :].partition(",")[0].rstrip(")") + "()"
    return text


# --- writing the page ------------------------------------------------------------------------------------------------


def page() -> str:
    """The whole page."""
    lines = [*INTRODUCTION]
    for module in MODULES:
        lines += [f"## `{module.name}`", "", *_wrapped(module.about), ""]
        for section in module.sections:
            lines += [f"### {section.title}", ""]
            if section.about:
                lines += [*_wrapped(section.about), ""]
            if section.union:
                lines += _union(module, section)
            else:
                for name in section.names:
                    lines += _name(module, name)
    return "\n".join(lines).rstrip() + "\n"


def _name(module: Module, name: str) -> Iterator[str]:
    found = public_of(module, name)
    yield f"#### `{name}`"
    yield ""
    if not isinstance(found, type):
        # Nobody calls a fixture, and its arguments are other fixtures.
        if not name.startswith("tenuto_"):
            yield from _signatures((signature(_function(found)),))
        yield from _doc(inspect.getdoc(found) or "")
        return
    shown = constructor(found)
    if shown is not None:
        yield from _signatures((shown,), "text")
    yield from _doc(inspect.getdoc(found) or "")
    inherited = members(found.__mro__[1]) if name == "RealEnvironment" else {}
    own = {one: member for one, member in members(found).items() if one not in inherited}
    yield from _fields([one for one in own.values() if not one.signatures])
    for member in own.values():
        if member.signatures:
            yield from _method(name, member)


def _function(found: Any) -> Function:
    node = ast.parse(textwrap.dedent(inspect.getsource(found))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return node


def _union(module: Module, section: Section) -> Iterator[str]:
    """Several classes with one list of members, and a table of which class has which member."""
    classes = [public_of(module, name) for name in section.names]
    by_class = {kind.__name__: members(kind) for kind in classes}
    merged = {name: member for each in by_class.values() for name, member in each.items()}
    yield "| class | |"
    yield "|---|---|"
    for kind in classes:
        yield f"| `{kind.__name__}` | {' '.join((inspect.getdoc(kind) or '').split())} |"
    yield ""
    yield "| member | " + " | ".join(f"`{name}`" for name in by_class) + " |"
    yield "|---|" + "---|" * len(by_class)
    for name in merged:
        marks = " | ".join("yes" if name in each else "" for each in by_class.values())
        yield f"| [`{name}`](#ctx{name.replace('.', '')}) | {marks} |"
    yield ""
    for member in merged.values():
        yield from _method("ctx", member, "####")


def _method(owner: str, member: Member, level: str = "#####") -> Iterator[str]:
    yield f"{level} `{owner}.{member.name}`"
    yield ""
    yield from _signatures(member.signatures or (f"{member.name}: {member.kind}",))
    yield from _doc(member.doc)


def _signatures(shown: Sequence[str], language: str = "python") -> Iterator[str]:
    yield f"```{language}"
    # A module that is imported under another name, so as not to hide a method, is shown by its own.
    yield from re.sub(r"\b_(random|uuid)\.", r"\1.", "\n".join(shown)).splitlines()
    yield "```"
    yield ""


def _fields(found: Sequence[Member]) -> Iterator[str]:
    if not found:
        return
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    for one in found:
        default = "" if one.default is None else f"`{_plain_default(one)}`"
        kind = one.kind.replace("|", "\\|")
        yield f"| `{one.name}` | `{kind}` | {default} | {' '.join(one.doc.split())} |"
    yield ""


def _doc(text: str) -> Iterator[str]:
    """A docstring as markdown, in which indented lines are code."""
    yield from text.splitlines()
    yield ""


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False)


# --- what is missing -------------------------------------------------------------------------------------------------


def missing() -> list[str]:
    """Public names that the page lacks, names that the code lacks, and public members without a docstring."""
    found: list[str] = []
    for module in MODULES:
        told = [name for section in module.sections for name in section.names]
        found += [f"{module.name}.{name}: not on the page, or not in the code" for name in exported(module) ^ set(told)]
        found += [f"{module.name}.{name}: on the page twice" for name in set(told) if told.count(name) > 1]
        for name in set(told) & exported(module):
            found += _undocumented(f"{module.name}.{name}", public_of(module, name))
    return sorted(found)


def _undocumented(name: str, found: Any) -> Iterator[str]:
    if isinstance(found, type):
        if not inspect.cleandoc(vars(found).get("__doc__") or ""):
            yield f"{name}: no docstring"
        texts = [vars(found).get("__doc__") or "", *(one.doc for one in members(found).values())]
        for member in members(found).values():
            if not member.doc:
                yield f"{name}.{member.name}: no docstring"
            elif member.doc.startswith("See `"):
                yield f"{name}.{member.name}: refers elsewhere and explains nothing"
        for method in (
            one for base in found.__mro__ if base.__module__.startswith("tenuto") for one in _tree(base).body
        ):
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and (
                method.name == "__init__" or method.name in members(found)
            ):
                yield from _unexplained(f"{name}.{method.name}", method, "\n".join(texts))
    elif not found.__doc__:
        yield f"{name}: no docstring"
    elif get_origin(found) is None:
        yield from _unexplained(name, _function(found), found.__doc__)


def _unexplained(name: str, function: Function, text: str) -> Iterator[str]:
    """Parameters that may be left out and that no text mentions."""
    for one, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is not None and f"`{one.arg}`" not in text and f"`{one.arg}=" not in text:
            yield f"{name}: the parameter {one.arg} is not explained"


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description="Write docs/reference/sdk.md.")
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args()
    if missing():
        raise SystemExit("\n".join(missing()))
    if arguments.check:
        return int(PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
