"""The Python of the README and the guides runs, and does what the page says.

Owns the running of fences, page by page and in order, and one scenario for what a page claims of its
handlers. Does not own the form of pages (`tests.tidy.test_pages`).
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenuto import TerminalError
from tenuto.testing import Environment, NothingWaitsError
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

    def test(self) -> None:
        """Run the tests that the page shows, apart from those that want a fixture."""
        shown = [one for name, one in vars(self).items() if name.startswith("test_") and inspect.isfunction(one)]
        for one in shown:
            if not inspect.signature(one).parameters:
                done = one()
                if inspect.iscoroutine(done):
                    asyncio.run(done)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.chdir(tmp_path)
    module = Page("page_under_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    # What a page shows as a module of a project `shop` is the page itself.
    monkeypatch.setitem(sys.modules, "shop", types.ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.handlers", module)
    yield module
    # A function process keeps its loop until it ends; here the process goes on.
    loop = getattr(getattr(module, "handler", None), "_loop", None)
    if loop is not None:
        loop.close()


@pytest.mark.parametrize("path", PAGES, ids=tree.name_of)
def test_fences_run(page: Page, path: Path) -> None:
    page.run(path)
    page.test()


def test_the_readme_enriches_a_profile(page: Page) -> None:
    page.run(tree.ROOT / "README.md")
    topics = {"user-events": page.user_event, "feature-events": page.feature_event}
    with Environment(page.profile, topics=topics) as env:
        with pytest.raises(TerminalError, match="user not found"):
            env.call(page.feature_event, "ann", "dark-mode").result()
        env.event("user-events", "ann", {"id": "ann", "name": "Ann"}).result()
        env.event("feature-events", "ann", "dark-mode").result()
        env.advance(seconds=1).result()
        (record,) = env.published("enriched-profiles").result()
        assert (record.key, record.value) == (b"ann", {"id": "ann", "name": "Ann", "features": ["dark-mode"]})
        assert env.state(page.profile, "ann").result() == {}


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
    with Environment(page.account, page.mailer) as env:
        assert env.call(page.pay, "ann", page.Deposit(5)).result() == "charged"
        assert list(page.charged.values()) == [5]
        env.call(page.open_account, "ann", "ann@example.com").result()
        assert len(env.published("accounts-opened").result()) == 1
        env.advance(days=1).result()
        assert env.call(page.balance, "ann").result() == 100
        assert env.call(page.cheapest, ["ab", "abc"]).result() == 200
        env.send(page.close, "ann").result()
        env.advance(days=29).result()
        assert env.call(page.balance, "ann").result() == 100
        env.advance(days=1).result()
        assert env.state(page.account, "ann").result() == {}


def test_the_kafka_guide(page: Page) -> None:
    page.run(GUIDES / "kafka.md")
    with Environment(page.visitor, topics={"clicks": page.clicked}) as env:
        env.event("clicks", "ann", {"visitor": {"id": "ann"}}).result()
        assert env.state(page.visitor, "ann").result() == {"last": {"offset": 0, "trace": ""}}


@pytest.mark.parametrize("answered", [True, False])
def test_the_handlers_guide_to_asyncio(page: Page, answered: bool) -> None:
    page.run(GUIDES / "handlers.md")
    with Environment(page.account, page.mailer) as env:
        confirmed = env.send(page.confirm, "ann@example.com").result()
        env.advance(days=5).result()
        reminder = "reminder to ann@example.com"
        assert page.sent[1:] == [reminder] * 2
        if answered:
            env.resolve_awakeable(page.sent[0], True).result()
        env.advance(days=4).result()
        assert page.sent[1:] == [reminder] * (2 if answered else 3)
        env.result(confirmed).result()
        compared = env.send(page.compare, ["ab", "abc"]).result()
        env.advance(minutes=1).result()
        env.result(compared).result()
        assert env.waits().result()[0].startswith("nothing at all")


@pytest.mark.parametrize("answer", ["resolve", "reject", "silence"])
def test_the_guide_to_calls(page: Page, answer: str) -> None:
    page.run(GUIDES / "rpc.md")
    with Environment(page.cart) as env:
        assert env.call(page.add, "ann", "tea").result() == ["tea"]
        with pytest.raises(TerminalError, match="in the cart already") as refused:
            env.call(page.add, "ann", "tea").result()
        assert (refused.value.status_code, refused.value.metadata) == (409, {"item": "tea"})
        assert env.call(page.show, "ann").result() == ["tea"]
        env.send(page.checkout, "ann").result()
        (awakeable,) = page.asked
        if answer == "resolve":
            env.resolve_awakeable(awakeable, "Robin").result()
        elif answer == "reject":
            env.reject_awakeable(awakeable, "too expensive").result()
        else:
            env.advance(hours=1).result()
        assert env.waits().result()[0].startswith("nothing at all")
        with pytest.raises(NothingWaitsError):
            env.resolve_awakeable(awakeable, "too late").result()


def test_the_guide_to_errors(page: Page) -> None:
    page.run(GUIDES / "errors_and_retries.md")
    with Environment(page.account, topics={"events": page.fragile}) as env:
        with pytest.raises(TerminalError, match="not enough money") as refused:
            env.call(page.withdraw, "ann", 5).result()
        assert (refused.value.status_code, refused.value.metadata) == (409, {"missing": "5"})
        with pytest.raises(TerminalError, match="no room"):
            env.call(page.book, "ann").result()
        assert page.cancelled == ["flight"]
        assert env.call(page.notify, "ann").result().startswith("went on without: run 'notify' failed 3 times")
        env.event("events", "ann", "x").result()
        env.advance(minutes=5).result()
        assert page.tries == ["x"] * 3
        (letter,) = env.dead_letters().result()
        assert (letter.topic, letter.reason) == ("events.dead-letter", "ValueError: this never works")
