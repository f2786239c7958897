"""The pytest plugin in a project of its own, and what importing the parts costs and needs.

Owns the claims that need another process. Does not own the fixtures' environment (`test_environment`).
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

INSTALLED = any(found.value == "tenuto.pytest_plugin" for found in entry_points(group="pytest11"))
PLUGIN = () if INSTALLED else ("-p", "tenuto.pytest_plugin")
"""How pytest gets the plugin: by itself where tenuto was installed with it."""

PROJECT = {
    "shop.py": """
        from tenuto import ObjectContext, VirtualObject

        orders = VirtualObject("orders")

        @orders.handler()
        async def add(ctx: ObjectContext, amount: int) -> int:
            total = (await ctx.get("total", int) or 0) + amount
            ctx.set("total", total)
            return total
    """,
    "conftest.py": """
        import pytest
        from shop import add, orders

        @pytest.fixture
        def tenuto_services():
            return [orders]

        @pytest.fixture
        def tenuto_topics():
            return {"amounts": add}
    """,
    "test_shop.py": """
        import asyncio
        from shop import add, orders

        def test_without_a_loop(tenuto_env):
            tenuto_env.event("amounts", "k", 2).result()
            assert tenuto_env.call(add, "k", 3).result() == 5

        def test_in_a_coroutine(tenuto_env):
            async def main():
                assert await tenuto_env.call(add, "k", 3) == 3
            asyncio.run(main())

    """,
    "alone/test_alone.py": """
        import pytest

        @pytest.fixture
        def tenuto_services():
            from tenuto import Service
            return [Service("empty")]

        @pytest.fixture
        def tenuto_topics():
            return {}

        def test_overridden(tenuto_env):
            assert tenuto_env.waits().result()[0].startswith("nothing at all")
    """,
}


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, text=True, capture_output=True, timeout=60, check=False
    )


def project(folder: Path) -> None:
    for name, text in PROJECT.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
        path.write_text("\n".join(lines))


def test_the_fixtures_in_a_project_of_its_own(tmp_path: Path) -> None:
    project(tmp_path)
    ran = python(tmp_path, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGIN)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout


def test_services_have_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text("def test_it(tenuto_env): pass\n")
    ran = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGIN)
    assert "tenuto_env needs the services under test. Override the fixture in conftest.py" in ran.stdout
    assert "Traceback" not in ran.stdout


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import tenuto", ("tenuto.testing", "tenuto_control")),
        ("import tenuto.aws", ("tenuto.testing", "tenuto_control")),
        ("import tenuto.pytest_plugin", ("tenuto.testing", "tenuto_control")),
        (
            "import tenuto.testing",
            ("aiokafka", "aiobotocore", "botocore", "starlette", "uvicorn", "cramjam", "tenuto_local"),
        ),
    ],
)
def test_what_an_import_does_not_bring(tmp_path: Path, code: str, absent: tuple[str, ...]) -> None:
    ran = python(tmp_path, "-c", f"{code}\nimport sys\nprint(sorted(set(sys.modules) & {set(absent)!r}))")
    assert ran.stdout == "[]\n", ran.stderr
