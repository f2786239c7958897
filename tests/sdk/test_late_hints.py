"""Hints that name what their module defines further down: resolved when the services are bound, and at first use.

Owns what is put off and until when. Does not own which hints are refused (`test_declarations`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

HEAD = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypedDict
from msgspec import Struct
from pydantic import BaseModel
from tenuto import Context, ObjectContext, Service, aws
orders = Service("orders")
"""
PLACE = """
@orders.handler()
async def place(ctx: Context, order: Order) -> Receipt: ...
"""
ORDER = """
@dataclass
class Order:
    item: Item
"""
ITEM = """
@dataclass
class Item:
    n: int
"""
RECEIPT = """
@dataclass
class Receipt:
    n: int
"""
BIND = """
handler = aws.handler(orders)
"""

Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module that is made of the given parts."""
    monkeypatch.syspath_prepend(tmp_path)

    def made(*parts: str) -> ModuleType:
        (tmp_path / "written_late.py").write_text("".join(parts))
        return importlib.import_module("written_late")

    yield made
    sys.modules.pop("written_late", None)


def line_of(words: str, *parts: str) -> int:
    return next(n for n, line in enumerate("".join(parts).splitlines(), 1) if line.startswith(words))


@pytest.mark.parametrize(
    "types",
    [
        ORDER + ITEM + RECEIPT,
        "class Order(Struct):\n    item: Item\nclass Item(Struct):\n    n: int\n" + RECEIPT,
        "class Order(BaseModel):\n    item: Item\nclass Item(BaseModel):\n    n: int\n" + RECEIPT,
        "class Order(TypedDict):\n    item: Item\nclass Item(NamedTuple):\n    n: int\n" + RECEIPT,
        "from tests.kit.shop import Order\n" + RECEIPT,
        "for name in ('Order', 'Receipt'):\n    globals()[name] = dict\nOrder = Order\nReceipt = Receipt\n",
    ],
    ids=["dataclass", "Struct", "pydantic", "TypedDict", "import", "assignment"],
)
def test_what_is_defined_further_down_is_found_when_services_are_bound(load: Load, types: str) -> None:
    module = load(HEAD, PLACE, types, BIND)
    assert module.orders.handlers["place"].spec.takes_input


@pytest.mark.parametrize("owner", ["@dataclass\nclass Order:", "class Order(Struct):", "class Order(BaseModel):"])
def test_what_a_type_names_may_be_defined_further_down_too(load: Load, owner: str) -> None:
    module = load(HEAD, f"{owner}\n    item: Item\n", PLACE, ITEM, RECEIPT, BIND)
    assert module.place.spec.input.deserialize(b'{"item": {"n": 3}}').item.n == 3


def test_a_context_may_be_imported_further_down(load: Load) -> None:
    head = HEAD.replace("import Context, ", "import ")
    assert load(head, ORDER, ITEM, RECEIPT, PLACE, "from tenuto import Context\n", BIND).place.spec.takes_input


def test_a_message_resolves_the_hints_of_its_target(load: Load) -> None:
    module = load(HEAD, PLACE, ORDER, ITEM, RECEIPT)
    assert module.place.encode(module.Order(module.Item(3))) == b'{"item":{"n":3}}'


@pytest.mark.parametrize(
    ("parts", "at"),
    [
        ((HEAD, RECEIPT, PLACE, BIND), "@orders"),
        ((HEAD, RECEIPT, "if TYPE_CHECKING:\n    from shop import Order\n", PLACE, BIND), "@orders"),
        ((HEAD, RECEIPT, PLACE, "if TYPE_CHECKING:\n    from shop import Order\n", BIND), "handler"),
        ((HEAD, PLACE, BIND, ORDER, ITEM, RECEIPT), "handler"),
        ((HEAD, ORDER, ITEM, RECEIPT, "del Item\n", PLACE, BIND), "@orders"),
        ((HEAD, "class Order(BaseModel):\n    item: Item\n", RECEIPT, PLACE, BIND), "@orders"),
        (
            (HEAD, RECEIPT, "def local():\n    class Order: ...\n", PLACE.replace("\n", "\n    "), "\nlocal()\n"),
            "local()",
        ),
    ],
    ids=["nowhere", "for checkers", "for checkers, later", "after binding", "in a type", "in a model", "local"],
)
def test_what_is_nowhere_is_refused_at_the_latest_when_services_are_bound(
    load: Load, parts: tuple[str, ...], at: str
) -> None:
    words = (
        r"orders/place: the .*'?(Order|Item)'? .*cannot be resolved: .* at module level, above `aws\.handler\(...\)`"
    )
    with pytest.raises(TypeError, match=words) as refused:
        load(*parts)
    assert f"written_late.py:{line_of('@orders', *[part.replace('    @', '@') for part in parts])})" in str(
        refused.value
    )
    lines = [entry.lineno for entry in refused.traceback if Path(str(entry.path)).name == "written_late.py"]
    assert lines[0] + 1 == line_of(at, *parts)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((PLACE.replace("Context", "ObjectContext"), ORDER, ITEM), "given a Context, not an ObjectContext"),
        ((PLACE.replace(": Order", ": Order = None"), ORDER, ITEM), "the default of its input 'order' is never used"),
        ((PLACE, "class Order: ...\n"), "Order has no JSON form"),
    ],
    ids=["context", "default", "no form"],
)
def test_what_is_found_late_is_checked_all_the_same(load: Load, parts: tuple[str, ...], words: str) -> None:
    with pytest.raises(TypeError, match=rf"^orders/place: .*{words}.*written_late\.py:{line_of('@', HEAD, *parts)}\)$"):
        load(HEAD, *parts, RECEIPT, BIND)


def test_two_services_of_one_name_name_their_handlers(load: Load) -> None:
    other = 'other = Service("orders")\nother.handler("pay")(place.function)\naws.handler(orders, other)\n'
    line = line_of("@orders", HEAD, ORDER, ITEM, RECEIPT, PLACE)
    words = (
        rf"two services are called 'orders', with handlers at .*:{line} and .*:{line}: give one of them another name"
    )
    with pytest.raises(ValueError, match=words):
        load(HEAD, ORDER, ITEM, RECEIPT, PLACE, other)
