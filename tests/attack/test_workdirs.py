"""What is cleaned up and opened in a temporary directory that others share: this user's own, and through no link.

Owns the folders of the embedded stack and its lock files, before whatever another user may have put in their place.
Does not own what is in such a folder (`tests/local`).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tenuto_local.cache import locked
from tenuto_local.errors import ConfigurationError
from tenuto_local.workdir import Workdir, open_lock, own_folder, sweep_abandoned, write_private

OTHER_USER = 65_534
PRECIOUS = "what somebody has written"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that belongs to another user")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory that everybody may write to."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of this user's, elsewhere."""
    path = tmp_path / "victim"
    path.write_text(PRECIOUS)
    return path


def abandoned(shared: Path, name: str = "tenuto-stack-old", mode: int = 0o700) -> Path:
    """A folder like that of a stack that was killed an hour ago."""
    folder = shared / name
    folder.mkdir()
    folder.chmod(mode)
    (folder / "kafka.log").write_text("gone")
    return folder


def age(folder: Path) -> None:
    hour_ago = time.time() - 3600
    os.utime(folder, (hour_ago, hour_ago), follow_symlinks=False)


def sweep(shared: Path) -> None:
    """Start a stack's folder, which sweeps up first, and end it."""
    workdir = Workdir()
    assert workdir.path.parent == shared.resolve()
    assert workdir.path.stat().st_mode & 0o777 == 0o700
    workdir.close()
    assert not workdir.path.exists()


def test_an_abandoned_folder_of_ones_own_is_removed_and_what_it_links_to_is_not(shared: Path, victim: Path) -> None:
    folder = abandoned(shared)
    (folder / "link").symlink_to(victim)
    (folder / "links").symlink_to(victim.parent)
    age(folder)
    sweep(shared)
    assert not folder.exists()
    assert victim.read_text() == PRECIOUS


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe", "folder", "dangling link"])
def test_a_lock_that_is_something_else_harms_nothing(shared: Path, victim: Path, kind: str) -> None:
    folder = abandoned(shared)
    lock = folder / ".lock"
    match kind:
        case "symbolic link":
            lock.symlink_to(victim)
        case "hard link":
            lock.hardlink_to(victim)
        case "pipe":
            os.mkfifo(lock)
        case "folder":
            lock.mkdir()
        case _:
            lock.symlink_to(victim.parent / "not there")
    age(folder)
    sweep(shared)
    assert victim.read_text() == PRECIOUS
    assert not (victim.parent / "not there").exists()


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o770, 0o701])
def test_a_folder_that_others_may_enter_is_left_alone(shared: Path, victim: Path, mode: int) -> None:
    folder = abandoned(shared, mode=mode)
    (folder / ".lock").symlink_to(victim)
    age(folder)
    sweep(shared)
    assert (folder / "kafka.log").read_text() == "gone"
    assert victim.read_text() == PRECIOUS


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o777])
@pytest.mark.parametrize("linked", [True, False])
def test_another_users_folder_is_left_alone(shared: Path, victim: Path, mode: int, linked: bool) -> None:
    folder = abandoned(shared, mode=mode)
    if linked:
        (folder / ".lock").symlink_to(victim)
    os.chown(folder, OTHER_USER, OTHER_USER)
    age(folder)
    sweep(shared)
    assert (folder / "kafka.log").read_text() == "gone"
    assert (folder / ".lock").is_symlink() is linked
    assert victim.read_text() == PRECIOUS


def test_a_link_in_the_place_of_a_folder_is_not_followed(shared: Path, tmp_path: Path, victim: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "kept").write_text(PRECIOUS)
    link = shared / "tenuto-stack-link"
    link.symlink_to(elsewhere)
    age(elsewhere)
    age(link)
    (shared / "tenuto-stack-file").write_text(PRECIOUS)
    sweep(shared)
    assert sorted(path.name for path in elsewhere.iterdir()) == ["kept"]
    assert (shared / "tenuto-stack-file").read_text() == PRECIOUS


def test_a_folder_in_use_is_left_alone(shared: Path) -> None:
    running = Workdir()
    age(running.path)
    sweep_abandoned()
    assert running.path.is_dir()
    with pytest.raises(ConfigurationError, match="another stack"):
        Workdir(running.path)
    running.close()
    running.close()


def test_opening_a_lock_truncates_nothing_and_follows_nothing(tmp_path: Path, victim: Path) -> None:
    os.close(open_lock(victim))
    assert victim.read_text() == PRECIOUS
    link = tmp_path / "link"
    link.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        open_lock(link)
    made = tmp_path / "new"
    os.close(open_lock(made))
    assert made.stat().st_mode & 0o777 == 0o600


def test_a_private_file_takes_the_place_of_a_link_and_leaves_its_target(tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "aws.env"
    path.symlink_to(victim)
    write_private(path, "secret")
    assert victim.read_text() == PRECIOUS
    assert (path.read_text(), path.stat().st_mode & 0o777, path.is_symlink()) == ("secret", 0o600, False)


def test_the_locks_of_the_cache_follow_no_link(tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / ".maven.lock").symlink_to(victim)
    monkeypatch.setenv("TENUTO_CACHE", str(cache))

    async def scenario() -> None:
        async with locked("maven"):
            raise AssertionError("a link was taken for a lock")

    with pytest.raises(OSError, match="symbolic links"):
        asyncio.run(scenario())
    assert victim.read_text() == PRECIOUS


def test_programs_are_started_from_folders_that_others_cannot_change(tmp_path: Path) -> None:
    made = own_folder(tmp_path / "new")
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o777)
    assert own_folder(made).stat().st_mode & 0o777 == 0o755


@as_root
def test_programs_are_not_started_from_another_users_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    os.chown(folder, OTHER_USER, OTHER_USER)
    with pytest.raises(ConfigurationError, match="TENUTO_CACHE"):
        own_folder(folder)
