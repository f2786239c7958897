"""mypy and pyright, both strict, on what users write: new projects, the guides' samples and the examples.

Owns that the types of an installed wheel say what is right, and what is wrong. Does not own that the samples run
(`tests/docs`, `tests/cli`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tenuto_cli.init import TEMPLATES
from tests.install.environment import Bare
from tests.outside import pyright
from tests.outside.project import made
from tests.tidy import tree
from tests.tidy.test_pages import python_fences

SECONDS_MAX: Final = 300
EXAMPLES: Final = sorted(path.parent.name for path in (tree.ROOT / "examples").glob("*/tenuto.toml"))
PARTS: Final = {"reportUnusedImport": False, "reportDuplicateImport": False, "reportMissingParameterType": False}
"""Of a page's fences: each shows a part, whose imports the next one may need, and pytest's fixtures come untyped."""

REFUSED: Final = '''"""Each line with a mark is a mistake in types; all others are none."""

from datetime import timedelta
from typing import Any, Literal, assert_type

from msgspec import Struct

from tenuto import Context, ObjectContext, ObjectSharedContext, Service, VirtualObject
from tenuto.testing import Environment

cart = VirtualObject("cart")
mail = Service("mail")


class Order(Struct):
    item: str


class Urgent(Order):
    pass


def price(item: str) -> int:
    return len(item)


@cart.handler()
async def add(ctx: ObjectContext, item: str) -> int:
    assert_type(await ctx.run("price", price, item), int)
    await ctx.run("price", price, 3)  # wrong
    await ctx.run("price", price)  # wrong
    await ctx.sleep("an hour")  # wrong
    await ctx.sleep(timedelta(hours=1))
    assert_type(await ctx.get("items", list[str]), list[str] | None)
    text: str = await ctx.get("count", int)  # wrong
    return len(text)


@cart.handler(kind="shared")
async def look(ctx: ObjectSharedContext) -> int:
    ctx.set("count", 1)  # wrong
    return await ctx.get("count", int) or 0


@cart.handler()
async def empty(ctx: ObjectContext) -> None:
    ctx.clear_all()
    ctx.object_send(add, ctx.key, ctx.key)


@cart.handler()
async def weigh(ctx: ObjectContext, grams: float) -> None:
    ctx.object_send(weigh, ctx.key, grams - 1)
    ctx.object_send(weigh, ctx.key, str(grams))  # wrong


@cart.handler("pick some")
async def pick(ctx: ObjectContext, items: list[str] | None) -> None: ...


@cart.handler()
async def choose(ctx: ObjectContext, size: Literal["small", "large"]) -> None: ...


@cart.handler()
async def place(ctx: ObjectContext, order: Order) -> None: ...


@cart.handler()  # wrong
async def stateless(ctx: Context, item: str) -> None: ...


@cart.handler(kind="shared")  # wrong
async def exclusive(ctx: ObjectContext, item: str) -> None: ...


@mail.handler()  # wrong
async def keyed(ctx: ObjectContext, item: str) -> None: ...


@cart.handler()  # wrong
async def much(ctx: ObjectContext, item: str, count: int) -> None: ...


@cart.handler()  # wrong
def sync(ctx: ObjectContext, item: str) -> None: ...


@mail.handler()
async def send(ctx: Context, text: str) -> None:
    ctx.set("count", 1)  # wrong
    ctx.object_send(add, "ann", "tea", send_delay=timedelta(hours=1))
    ctx.object_send(add, "ann", "tea", send_delay="1 h")  # wrong
    ctx.service_send(send, text)
    ctx.service_send(send, 3)  # wrong
    ctx.service_send(send)  # wrong
    ctx.service_send(add, "tea")  # wrong
    ctx.object_send(send, "ann", text)  # wrong
    ctx.object_send(look, "ann")  # wrong
    ctx.object_send(add, "ann", len(text))  # wrong
    ctx.object_send(add, "ann")  # wrong
    ctx.object_send(add, 7, "tea")  # wrong
    ctx.object_send(empty, "ann")
    ctx.object_send(empty, "ann", None)
    ctx.object_send(empty, "ann", "all of it")  # wrong
    ctx.object_send(weigh, "ann", 2)
    ctx.object_send(weigh, "ann", 2.5 if text else 2)
    ctx.object_send(weigh, "ann", "much")  # wrong
    ctx.object_send(pick, "ann", ["tea", "milk"])
    ctx.object_send(pick, "ann", ["tea", 2])  # wrong
    ctx.object_send(pick, "ann", None)
    ctx.object_send(pick, "ann")
    ctx.object_send(choose, "ann", "small")
    ctx.object_send(choose, "ann", "tiny")  # wrong
    ctx.object_send(place, "ann", Order("tea"))
    ctx.object_send(place, "ann", Urgent("tea"))
    ctx.object_send(place, "ann", {"item": "tea"})  # wrong
    ctx.object_send(cart.handlers["add"], "ann", "tea")
    ctx.service_send(mail.handlers["send"], text)
    assert_type(await ctx.gather(ctx.sleep(1)), int)  # wrong


def test() -> None:
    with Environment(cart, mail) as env:
        assert_type(env.call(add, "ann", "tea").result(), int)
        assert_type(env.send(add, "ann", "tea").result().id, str)
        assert_type(env.state(cart, "ann", "count", int).result(), int | None)
        env.call(price, "ann", "tea")  # wrong
        env.call(add, "ann", 3)  # wrong
        env.call(add, "tea")  # wrong
        env.call(send, "ann", "tea")  # wrong
        env.send(send, b"tea")  # wrong
        env.send(look, "ann")  # wrong
        env.send(send, "tea", delay=60)
        assert_type(env.call(look, "ann").result(), int)
        assert_type(env.call("cart/add", "ann", "tea").result(), Any)
        env.advance("an hour")  # wrong
'''


def mypy(folder: Path, python: Path, *path: str) -> str:
    """What strict mypy says of a folder, with what an interpreter has installed."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--cache-dir", "/dev/null"]
    ended = subprocess.run(
        [*command, "--python-executable", str(python), "--no-error-summary", "--explicit-package-bases", "."],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "MYPYPATH": ":".join(path)},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stderr + ended.stdout
    return ended.stdout.strip()


def python(bare: Bare) -> Path:
    return bare.bin / "python"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_new_project(bare: Bare, tmp_path: Path, template: str) -> None:
    project = made(bare, tmp_path, template)
    assert mypy(project, python(bare), "src") == ""
    assert pyright.complaints(project, python(bare), extraPaths=["src"]) == []


def test_the_samples_of_the_guides(bare: Bare, tmp_path: Path) -> None:
    pages = [tree.ROOT / "README.md", *sorted((tree.ROOT / "docs" / "guides").glob("*.md"))]
    for page in pages:
        fences = [code for _, code in python_fences(page)]
        if page.stem == "testing":
            # Its tests are about a module that the page shows first.
            (tmp_path / "shop").mkdir()
            (tmp_path / "shop" / "__init__.py").touch()
            (tmp_path / "shop" / "handlers.py").write_text(fences.pop(0), "utf-8")
        if fences:
            (tmp_path / f"page_{page.stem.lower()}.py").write_text("\n\n".join(fences), "utf-8")
    found = pyright.complaints(tmp_path, python(bare), **PARTS)
    # A fixture of pytest comes untyped, and so does what is asked of it.
    assert [one for one in found if one.file != "page_testing.py" or " unknown" not in one.text] == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example(bare: Bare, tmp_path: Path, example: str) -> None:
    for source in (tree.ROOT / "examples" / example).glob("*.py"):
        shutil.copy(source, tmp_path)
    shutil.copytree(tree.ROOT / "examples", tmp_path / "all" / "examples", ignore=shutil.ignore_patterns(".*"))
    assert pyright.complaints(tmp_path, python(bare), extraPaths=["all"], exclude=["all"]) == []


def test_what_is_wrong_is_found(bare: Bare, tmp_path: Path) -> None:
    (tmp_path / "refused.py").write_text(REFUSED, "utf-8")
    wrong = {number for number, line in enumerate(REFUSED.splitlines(), 1) if line.endswith("# wrong")}
    assert len(wrong) >= 10
    told = mypy(tmp_path, python(bare))
    assert {int(line) for line in re.findall(r"refused\.py:(\d+): error", told)} == wrong, told
    found = pyright.complaints(tmp_path, python(bare), reportUnusedCoroutine=False)
    assert {one.line for one in found} == wrong, found
