"""Which jars are run: those whose hashes the repository lists, whatever Maven fetches.

Owns fetched components that are not as listed, from a repository that gives other files and in a cache that was changed
before. Does not own Maven, whose place a script takes here that gives what a test wants.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto_local import jar_hashes, jars
from tenuto_local.errors import FetchFailed

FILES = {"a.jar": b"first", "b.jar": b"second", "c.so": b"third"}
JARS = jars.JarSet("the component", "component-1", "component.pom.xml", 1)
files = st.dictionaries(st.sampled_from(["a.jar", "b.jar", "c.so", "d.jar"]), st.binary(max_size=3), max_size=4)


def put(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a list of the three files, and a Maven that copies what lies in `offered`."""
    resources = tmp_path / "resources"
    resources.mkdir()
    (resources / "component.pom.xml").write_text("<project/>")
    listed = jar_hashes.hashes_of(put(tmp_path / "listed", FILES))
    (resources / "component.sha256").write_text(jar_hashes.written(listed))
    tools = tmp_path / "bin"
    tools.mkdir()
    maven = tools / "mvn"
    maven.write_text(f"#!/bin/sh\necho fetched >> {tmp_path}/fetches\nmkdir lib && cp {tmp_path}/offered/* lib/\n")
    maven.chmod(0o755)
    monkeypatch.setattr(jars, "RESOURCES", resources)
    monkeypatch.setenv("TENUTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "cache"


def fetches(cache: Path) -> int:
    path = cache.parent / "fetches"
    return len(path.read_text().splitlines()) if path.exists() else 0


WRONG = [
    ({**FILES, "a.jar": b"First"}, "a.jar is another file"),
    ({**FILES, "b.jar": b""}, "b.jar is another file"),
    ({**FILES, "z.jar": b"more"}, "z.jar is not in the list"),
    ({"a.jar": FILES["a.jar"], "b.jar": FILES["b.jar"]}, "c.so is missing"),
    ({**FILES, "a.jar": FILES["b.jar"], "b.jar": FILES["a.jar"]}, "a.jar is another file, b.jar is another file"),
]


@pytest.mark.parametrize(("content", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_a_repository_gives_in_the_place_of_a_jar_is_not_kept(
    cache: Path, content: dict[str, bytes], said: str
) -> None:
    put(cache.parent / "offered", content)
    with pytest.raises(FetchFailed, match=said):
        asyncio.run(jars.fetch(JARS))
    assert not (cache / JARS.directory).exists()
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize(("content", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_was_fetched_before_there_was_a_list_is_compared_once(
    cache: Path, content: dict[str, bytes], said: str
) -> None:
    put(cache / JARS.directory / "lib", content)
    with pytest.raises(FetchFailed, match=f"{said}.*remove"):
        asyncio.run(jars.fetch(JARS))
    assert fetches(cache) == 0


def test_what_is_as_listed_is_fetched_once_and_compared_again_when_the_list_changes(cache: Path) -> None:
    put(cache.parent / "offered", FILES)
    homes = {asyncio.run(jars.fetch(JARS)) for _ in range(3)}
    assert fetches(cache) == 1
    assert homes == {cache / JARS.directory}
    assert {path.name for path in (cache / JARS.directory / "lib").iterdir()} == FILES.keys()
    other = jar_hashes.hashes_of(put(cache.parent / "other", {**FILES, "a.jar": b"newer"}))
    JARS.hashes.write_text(jar_hashes.written(other))
    with pytest.raises(FetchFailed, match=r"a\.jar is another file.*remove"):
        asyncio.run(jars.fetch(JARS))


@given(files, files)
def test_any_difference_is_seen(first: dict[str, bytes], second: dict[str, bytes]) -> None:
    one, other = ({name: data.hex().rjust(64, "0") for name, data in each.items()} for each in (first, second))
    assert jar_hashes.read(jar_hashes.written(one)) == one
    assert (jar_hashes.difference(one, other) is None) == (one == other)


@pytest.mark.parametrize("jar_set", [jars.KAFKA_BROKER, jars.DYNAMODB_LOCAL], ids=lambda one: one.directory)
def test_every_component_has_its_list(jar_set: jars.JarSet) -> None:
    listed = jar_hashes.read(jar_set.hashes.read_text())
    assert len(listed) > 40
    assert jar_hashes.written(listed) == jar_set.hashes.read_text()
    assert any(jar_set.directory.rpartition("-")[2] in name for name in listed)


@pytest.mark.parametrize("line", ["", "a.jar", "abc  a.jar", "0" * 64 + " a.jar", "0" * 63 + "  a.jar"])
def test_a_list_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"is not a SHA-256"):
        jar_hashes.read(f"{line}\n")
