"""The Python of the README and the guides runs, and does what the page says.

Owns the running of fences, page by page and in order, and one scenario for what a page claims of its
handlers. Does not own the form of pages (`tests.tidy.test_pages`).
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import sys
import types
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tenuto import TerminalError
from tests.support.in_process import InProcess
from tests.tidy import tree
from tests.tidy.test_pages import python_fences

PAGES = (tree.ROOT / "README.md", *sorted((tree.ROOT / "docs" / "guides").glob("*.md")))
GUIDES = tree.ROOT / "docs" / "guides"


class Page(types.ModuleType):
    """A page as a module: dataclasses and type hints look their module up by name."""

    def run(self, path: Path) -> None:
        """Execute the fences of a page, one after the other, as one program would be."""
        for line, code in python_fences(path):
            place = f"{tree.name_of(path)}, fence at line {line}"
            compiled = compile(code, place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            if compiled.co_flags & inspect.CO_COROUTINE:
                asyncio.run(types.FunctionType(compiled, self.__dict__)())
            else:
                exec(compiled, self.__dict__)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.chdir(tmp_path)
    module = Page("page_under_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module
    # A function process keeps its loop until it ends; here the process goes on.
    loop = getattr(getattr(module, "handler", None), "_loop", None)
    if loop is not None:
        loop.close()


@pytest.mark.parametrize("path", PAGES, ids=tree.name_of)
def test_fences_run(page: Page, path: Path) -> None:
    page.run(path)


def test_the_readme_enriches_a_profile(page: Page) -> None:
    page.run(tree.ROOT / "README.md")

    async def scenario() -> None:
        local = InProcess(page.profile)
        with pytest.raises(TerminalError, match="user not found"):
            await local.call(page.feature_event, "ann", "dark-mode")
        await local.deliver("user-events", "ann", page.user_event, b'{"id": "ann", "name": "Ann"}')
        await local.deliver("feature-events", "ann", page.feature_event, b'"dark-mode"')
        await local.advance(timedelta(seconds=1))
        ((_, record),) = local.published
        assert (record.topic, record.key) == ("enriched-profiles", b"ann")
        assert json.loads(record.value or b"") == {"id": "ann", "name": "Ann", "features": ["dark-mode"]}
        assert local.state(page.profile, "ann") == {}

    asyncio.run(scenario())


def test_the_readme_and_the_example_show_the_same_handlers() -> None:
    ((_, shown),) = python_fences(tree.ROOT / "README.md")
    example = (tree.ROOT / "examples/profile_enricher/handler.py").read_text("utf-8")
    bodies = {
        name: [
            ast.unparse(node)
            for node in ast.parse(source).body
            if isinstance(node, ast.AsyncFunctionDef) and node.name in {"user_event", "feature_event"}
        ]
        for name, source in (("shown", shown), ("example", example))
    }
    assert bodies["shown"] == bodies["example"]
    assert len(bodies["shown"]) == 2


def test_the_handlers_guide(page: Page) -> None:
    page.run(GUIDES / "handlers.md")

    async def scenario() -> None:
        local = InProcess(page.account, page.mailer)
        assert await local.call(page.pay, "ann", page.Deposit(5)) == "charged"
        assert list(page.charged.values()) == [5]
        await local.call(page.open_account, "ann", "ann@example.com")
        assert [entry.topic for _, entry in local.published] == ["accounts-opened"]
        await local.advance(timedelta(days=1))
        assert await local.call(page.balance, "ann") == 100
        assert await local.call(page.cheapest, "mail", ["ab", "abc"]) == 200
        with pytest.raises(TimeoutError):
            await local.call(page.close, "ann")
        await local.advance(timedelta(days=29))
        assert await local.call(page.balance, "ann") == 100
        await local.advance(timedelta(days=1))
        assert local.state(page.account, "ann") == {}

    asyncio.run(scenario())


def test_the_kafka_guide(page: Page) -> None:
    page.run(GUIDES / "kafka.md")

    async def scenario() -> None:
        local = InProcess(page.visitor)
        await local.deliver("clicks", "ann", page.clicked, b'{"visitor": {"id": "ann"}}')
        assert local.state(page.visitor, "ann") == {"last": {"offset": 0, "trace": ""}}

    asyncio.run(scenario())


@pytest.mark.parametrize("answered", [True, False])
def test_the_handlers_guide_to_asyncio(page: Page, answered: bool) -> None:
    page.run(GUIDES / "handlers.md")

    async def scenario() -> None:
        local = InProcess(page.account, page.mailer)
        with pytest.raises(TimeoutError):
            await local.call(page.confirm, "mail", "ann@example.com")
        for _ in range(5):
            await local.advance(timedelta(days=1))
        reminder = "reminder to ann@example.com"
        assert page.sent[1:] == [reminder] * 2
        if answered:
            assert await local.resolve(page.sent[0], True)
        for _ in range(4):
            await local.advance(timedelta(days=1))
        assert page.sent[1:] == [reminder] * (2 if answered else 3)
        with pytest.raises(TimeoutError):
            await local.call(page.compare, "others", ["ab", "abc"])
        await local.advance(timedelta(minutes=1))
        assert [local.head(page.mailer, key).run for key in ("mail", "others")] == [None, None]

    asyncio.run(scenario())


@pytest.mark.parametrize("answer", ["resolve", "reject", "silence"])
def test_the_guide_to_calls(page: Page, answer: str) -> None:
    page.run(GUIDES / "rpc.md")

    async def scenario() -> None:
        local = InProcess(page.cart)
        assert await local.call(page.add, "ann", "tea") == ["tea"]
        with pytest.raises(TerminalError, match="in the cart already") as refused:
            await local.call(page.add, "ann", "tea")
        assert (refused.value.status_code, refused.value.metadata) == (409, {"item": "tea"})
        assert await local.call(page.show, "ann") == ["tea"]
        with pytest.raises(TimeoutError):
            await local.call(page.checkout, "ann")
        (awakeable,) = page.asked
        if answer == "resolve":
            assert await local.resolve(awakeable, "Robin")
        elif answer == "reject":
            assert await local.reject(awakeable, "too expensive")
        else:
            await local.advance(timedelta(hours=1))
        assert local.head(page.cart, "ann").run is None
        assert not await local.resolve(awakeable, "too late")

    asyncio.run(scenario())


def test_the_guide_to_errors(page: Page) -> None:
    page.run(GUIDES / "errors_and_retries.md")

    async def scenario() -> None:
        local = InProcess(page.account)
        with pytest.raises(TerminalError, match="not enough money") as refused:
            await local.call(page.withdraw, "ann", 5)
        assert (refused.value.status_code, refused.value.metadata) == (409, {"missing": "5"})
        with pytest.raises(TerminalError, match="no room"):
            await local.call(page.book, "ann")
        assert page.cancelled == ["flight"]
        assert (await local.call(page.notify, "ann")).startswith("went on without: run 'notify' failed 3 times")
        await local.deliver("events", "ann", page.fragile, b'"x"')
        assert page.tries == ["x"] * 3
        ((_, record),) = local.published
        assert record.topic == "events.dead-letter"
        assert dict(record.headers)["tenuto-reason"] == b"ValueError: this never works"

    asyncio.run(scenario())
