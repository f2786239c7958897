"""The engines of the embedded stack's table: chosen by a setting, kept in a folder, run only as pinned.

Owns what every engine does for the stack, and what is fetched through npm. Does not own how a table behaves
(`tests/contract/test_table.py`).
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import signal
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tenuto_local import dynoxide, npm
from tenuto_local.dynoxide import loopback_host
from tenuto_local.errors import ConfigurationError, FetchFailed, PrerequisiteMissing
from tenuto_local.stack import EmbeddedStack
from tenuto_local.table import create_table
from tenuto_local.table_engine import ENGINE_VARIABLE, ENGINES, NATIVE, REFERENCE, EngineKind, chosen_engine
from tests.contract.table_clients import client_for
from tests.support import bounded

TABLE = "kept-lanes"
KEY = {"pk": {"S": "a"}, "sk": {"S": "H"}}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> EngineKind:
    """Each engine; skipped where its program cannot be had."""
    if request.param == NATIVE.name:
        try:
            bounded.run(dynoxide.find_program())
        except PrerequisiteMissing as error:
            pytest.skip(str(error))
    return ENGINES[request.param]


@pytest.mark.stack
def test_a_table_in_a_folder_outlives_a_killed_engine(engine: EngineKind, tmp_path: Path) -> None:
    async def scenario() -> None:
        for life in ("first", "second"):
            workdir = tmp_path / life
            workdir.mkdir()
            running = engine.make(workdir, data=tmp_path / "data")
            await running.start()
            try:
                async with client_for(running.endpoint_url) as client:
                    await create_table(client, TABLE)
                    if life == "second":
                        assert (await client.get_item(TableName=TABLE, Key=KEY))["Item"]["ver"] == {"N": "1"}
                        return
                    await client.put_item(TableName=TABLE, Item={**KEY, "ver": {"N": "1"}})
                os.killpg(running.pid, signal.SIGKILL)
            finally:
                await running.stop()

    bounded.run(scenario())


@pytest.mark.stack
def test_a_table_in_memory_is_empty_at_each_start(engine: EngineKind, tmp_path: Path) -> None:
    async def scenario() -> None:
        running = engine.make(tmp_path)
        for _ in range(2):
            await running.start()
            async with client_for(running.endpoint_url) as client:
                assert (await client.list_tables())["TableNames"] == []
                await create_table(client, TABLE)
            await running.stop()

    bounded.run(scenario())


def test_the_engine_is_what_the_setting_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    assert chosen_engine() is REFERENCE
    monkeypatch.setenv(ENGINE_VARIABLE, NATIVE.name)
    assert chosen_engine() is NATIVE
    assert chosen_engine(REFERENCE.name) is REFERENCE
    monkeypatch.setenv(ENGINE_VARIABLE, "sqlite")
    with pytest.raises(ConfigurationError, match="TENUTO_TABLE_ENGINE may be dynamodb-local or dynoxide"):
        EmbeddedStack()


@pytest.mark.stack
def test_no_web_page_knows_the_native_engines_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)

    async def hosts() -> set[str | None]:
        found = set()
        for _ in range(2):
            running = NATIVE.make(tmp_path)
            await running.start()
            found.add(urlsplit(running.endpoint_url).hostname)
            await running.stop()
        return found

    try:
        drawn = bounded.run(hosts())
    except PrerequisiteMissing as error:
        pytest.skip(str(error))
    assert len(drawn) == 2
    assert all(host is not None and host.startswith("127.") and host != "127.0.0.1" for host in drawn)


def test_behind_a_proxy_the_usual_exception_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    assert loopback_host() == "127.0.0.1"


PROGRAM_TEXT = b"#!/bin/sh\necho hello\n"


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an npm that hands out the archive at this path."""
    archive = tmp_path / "archive.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("package/bin/hello")
        member.size = len(PROGRAM_TEXT)
        tar.addfile(member, io.BytesIO(PROGRAM_TEXT))
    tools = tmp_path / "bin"
    tools.mkdir()
    client = tools / "npm"
    client.write_text(f"#!/bin/sh\necho fetched >> {tmp_path}/fetches\ncp {archive} hello-1.tgz\n")
    client.chmod(0o755)
    monkeypatch.setenv("TENUTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(npm, "runs_here", lambda: True)
    return archive


def pinned(archive: Path) -> npm.NpmProgram:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    return npm.NpmProgram("hello", "@hello/linux-x64", "1.0.0", integrity, "package/bin/hello", 1)


def test_a_program_is_fetched_once_and_kept(offered: Path) -> None:
    program = pinned(offered)
    for _ in range(2):
        path = bounded.run(npm.fetch_program(program))
        assert path.read_bytes() == PROGRAM_TEXT
        assert os.access(path, os.X_OK)
    assert (offered.parent / "fetches").read_text() == "fetched\n"


def test_an_archive_that_is_not_the_pinned_one_is_not_kept(offered: Path) -> None:
    program = pinned(offered)
    offered.write_bytes(offered.read_bytes() + b"\0")
    with pytest.raises(FetchFailed, match=r"@hello/linux-x64@1\.0\.0 does not match the pinned hash.*It was not run"):
        bounded.run(npm.fetch_program(program))
    assert [path.name for path in (offered.parent / "cache").iterdir() if not path.name.endswith(".lock")] == []


def test_what_cannot_be_had_is_one_line_with_the_way_out(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (offered.parent / "bin" / "npm").write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    monkeypatch.setenv("PATH", str(offered.parent / "bin"))
    with pytest.raises(PrerequisiteMissing) as refused:
        bounded.run(dynoxide.find_program())
    line = str(refused.value)
    assert "\n" not in line
    assert "npm error code E404" in line
    assert line.endswith("take the engine dynamodb-local")


def test_a_program_that_is_named_goes_before_the_pinned_one(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = offered.parent / "own"
    monkeypatch.setenv(dynoxide.PROGRAM_VARIABLE, str(own))
    for call in (lambda: bounded.run(dynoxide.find_program()), NATIVE.title):
        with pytest.raises(ConfigurationError, match=r"TENUTO_DYNOXIDE names .*/own, which is not a program"):
            call()
    own.write_text("#!/bin/sh\necho dynoxide 9.9\n")
    own.chmod(0o755)
    assert bounded.run(dynoxide.find_program()) == own
    assert NATIVE.title() == f"dynoxide 9.9, TENUTO_DYNOXIDE={own}"
    own.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ConfigurationError, match="--version fails"):
        NATIVE.title()


def test_a_program_on_the_path_takes_the_place_of_one_that_cannot_be_fetched(
    offered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = offered.parent / "own"
    own.mkdir()
    (own / "dynoxide").write_bytes(PROGRAM_TEXT)
    (own / "dynoxide").chmod(0o755)
    monkeypatch.setenv("PATH", str(own))
    said: list[str] = []
    assert bounded.run(dynoxide.find_program(said.append)) == own / "dynoxide"
    assert len(said) == 1
    assert "npm is needed once" in said[0]
