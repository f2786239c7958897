"""`tenuto replay` in a project's folder, and `tenuto journal` against a table.

Owns the words and exit statuses. Does not own replays (`test_replays`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenuto.testing import Environment
from tenuto_cli.program import main
from tenuto_control.admin import journals
from tests.kit.test_replays import journal_of, version
from tests.support import bounded

CODE = """
from datetime import timedelta
from tenuto import ObjectContext, VirtualObject, aws

parcel = VirtualObject("parcel")

@parcel.handler()
async def travel(ctx: ObjectContext) -> list[str]:
    await ctx.run("pack", print, "a step has run")
    await ctx.run("{second}", print, "a step has run")
    await ctx.sleep(timedelta(days=1))
    return []

handler = aws.handler(parcel)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "journal.json").write_bytes(journal_of(version("pack", "load", "carry")))
    (tmp_path / "src").mkdir()
    before = set(sys.modules)
    yield tmp_path
    for name in {"same_parcel", "other_parcel", "configured_parcel"} & set(sys.modules) - before:
        del sys.modules[name]


def test_the_same_code(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "same_parcel.py").write_text(CODE.format(second="load"))
    assert main(["replay", "journal.json", "same_parcel:handler"]) == 0
    assert capsys.readouterr().out == (
        "parcel/travel takes the same way through 3 commands of its journal, then it waits\n"
    )


def test_other_code(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "other_parcel.py").write_text(CODE.format(second="lift"))
    assert main(["replay", "journal.json", "other_parcel"]) == 1
    told = capsys.readouterr()
    assert "the journal has run 'load', the handler now issued run 'lift'" in told.err
    assert "a step has run" not in told.out


def test_the_functions_of_a_configuration(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "src" / "configured_parcel.py").write_text(CODE.format(second="load"))
    (project / "tenuto.toml").write_text('[functions.parcel]\nhandler = "configured_parcel:handler"\n')
    assert main(["replay", "journal.json"]) == 0
    assert "the same way" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json", "json"], "'none.json': the journal cannot be read: No such file or directory"),
        (["journal.json", "no_such_module:handler"], "there is no module 'no_such_module'"),
        (["journal.json", "json:nothing"], "json has no 'nothing'"),
        (["journal.json", "json"], "parcel/travel, which is not served here any more"),
        (["journal.json"], "tenuto.toml"),
    ],
)
def test_mistakes_are_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["replay", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1


def test_a_journal_is_read_by_the_id_of_its_invocation_and_by_its_key() -> None:
    async def main() -> None:
        async with Environment(version("pack", "load", "carry")) as env:
            sent = await env.send("parcel/travel", "p-1")
            table, now_ms = env._world.table, 5
            found = await journals.read(table, sent.id, now_ms)
            assert found == await journals.read(table, "parcel/p-1", now_ms)
            assert journals.parse(journals.write(found)) == found
            for wrong, words in (
                ("parcel/p-2", "of parcel is unfinished"),
                ("inv_x", "not an invocation id"),
                ("parcel", "does not name a journal"),
            ):
                with pytest.raises(journals.NoJournalError, match=words):
                    await journals.read(table, wrong, now_ms)
            other = await env.send("parcel/travel", "p-1")
            with pytest.raises(
                journals.NoJournalError, match=f"not running; the one that runs for its key is {sent.id}"
            ):
                await journals.read(table, other.id, now_ms)

    bounded.run(main())
