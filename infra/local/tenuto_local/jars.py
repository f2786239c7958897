"""The Java components: fetching them once with Maven, and the command lines that run them.

Owns which jars a component needs and how they are laid out in the cache (`cache`). A finished component is complete or
absent, never half there: everything is made in a temporary directory and renamed. What Maven has fetched is used only
if it has the hashes that the repository lists (`jar_hashes`). Nothing touches the network once a component is there.
Knows nothing of how a component is configured.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tenuto_local import jar_hashes
from tenuto_local.cache import Progress, TemporarySibling, cache_root, locked, run_to_end, silent
from tenuto_local.errors import FetchFailed, PrerequisiteMissing
from tenuto_local.processes import ManagedProcess
from tenuto_local.workdir import own_folder

MAVEN_TIMEOUT_S = 600.0
JAVAC_TIMEOUT_S = 60.0
RESOURCES = Path(__file__).parent / "maven"
VERIFIED = "verified.sha256"
"""In a component's directory: the list of hashes that it was compared with."""

COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"
"""By its version: without one, each Maven has another. Maven before 3.9 cannot compare a plugin with a hash."""


@dataclass(frozen=True, slots=True)
class JarSet:
    """What Maven fetches for one component. `directory` names its versions: a new version is a new one."""

    title: str
    directory: str
    pom: str
    size_mb: int

    @property
    def hashes(self) -> Path:
        """The list of its files' hashes."""
        return RESOURCES / self.pom.replace(".pom.xml", ".sha256")


KAFKA_BROKER = JarSet("the Kafka broker", "kafka_2.13-4.3.1", "kafka.pom.xml", 44)
DYNAMODB_LOCAL = JarSet("DynamoDB Local", "dynamodb-local-3.1.0", "dynamodb.pom.xml", 48)


def java_identity() -> str:
    """A short name for the installed Java: class archives fit only the very JVM that wrote them."""
    java = shutil.which("java")
    if java is None:
        raise PrerequisiteMissing("java not found")
    binary = Path(java).resolve()
    return hashlib.sha256(f"{binary}:{binary.stat().st_mtime_ns}".encode()).hexdigest()[:12]


async def fetch(jar_set: JarSet, progress: Progress = silent) -> Path:
    """Return the component's directory (jars in `lib/`), downloading it first when it is not in the cache.

    Raises `FetchFailed` with Maven's own complaint when the download fails, and for files that are not those listed.
    """
    home = own_folder(cache_root()) / jar_set.directory
    if _verified(jar_set, home):
        return home
    async with locked(jar_set.directory):
        if home.is_dir():
            # Fetched for another list, or before there was one.
            _verify(jar_set, home, f"remove {home}, and it is fetched anew")
            return home
        if shutil.which("mvn") is None:
            raise PrerequisiteMissing(f"Maven (mvn) is needed once, to fetch {jar_set.title}, and was not found")
        progress(f"fetching {jar_set.title} (about {jar_set.size_mb} MB, once)")
        with TemporarySibling(home) as staging:
            # Maven's own repository is not made for two downloads of the same artifact at once.
            async with locked("maven"):
                await download(jar_set, staging)
            _verify(jar_set, staging, "nothing of it was run; ask where Maven on this machine fetches from")
            staging.rename(home)
    return home


async def download(jar_set: JarSet, folder: Path, *options: str) -> None:
    """Have Maven put a component's jars into `folder/lib`, whatever their hashes. `options` go to Maven.

    Raises `FetchFailed` with its complaint.
    """
    shutil.copy(RESOURCES / jar_set.pom, folder / "pom.xml")
    argv = ["mvn", "-q", "-B", *options, COPY_DEPENDENCIES, "-DoutputDirectory=lib", "-DincludeScope=runtime"]
    maven = ManagedProcess("mvn", argv, folder / "maven.log", cwd=folder)
    await run_to_end(maven, MAVEN_TIMEOUT_S, f"{jar_set.title} could not be fetched; check the network")


def _verified(jar_set: JarSet, home: Path) -> bool:
    """Whether a component is there, and was found to be what the present list says."""
    try:
        return (home / VERIFIED).read_text() == jar_set.hashes.read_text()
    except OSError:
        return False


def _verify(jar_set: JarSet, home: Path, way_out: str) -> None:
    """See that a component's files have the hashes that are listed. Raises `FetchFailed`."""
    text = jar_set.hashes.read_text()
    wrong = jar_hashes.difference(jar_hashes.read(text), jar_hashes.hashes_of(home / "lib"))
    if wrong is not None:
        raise FetchFailed(f"{jar_set.title} does not match {jar_set.hashes.name}: {wrong}; {way_out}")
    (home / VERIFIED).write_text(text)


def fetched(*jar_sets: JarSet) -> bool:
    """Whether these components are all in the cache, so that Maven is not needed."""
    return all((cache_root() / jar_set.directory).is_dir() for jar_set in jar_sets)


def classpath(home: Path, *more: Path) -> str:
    """The jars of a component, sorted: a class archive fits only the same class path in the same order."""
    return os.pathsep.join([*(str(path) for path in more), *sorted(str(jar) for jar in (home / "lib").glob("*.jar"))])


async def compile_java(source: Path, home: Path) -> Path:
    """Compile one Java file against the jars of a component, once; returns the jar of its classes."""
    jar = home / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.jar"
    if jar.exists():
        return jar
    async with locked(f"{home.name}-classes"):
        if jar.exists():
            return jar
        with TemporarySibling(jar) as staging:
            classes = staging / "classes"
            argv = ["javac", "-nowarn", "-d", str(classes), "-cp", classpath(home), str(source)]
            compiler = ManagedProcess("javac", argv, staging / "javac.log")
            await run_to_end(compiler, JAVAC_TIMEOUT_S, f"{source.name} could not be compiled")
            with zipfile.ZipFile(staging / "out.jar", "w") as archive:
                for path in sorted(classes.rglob("*.class")):
                    archive.write(path, path.relative_to(classes))
            (staging / "out.jar").rename(jar)
    return jar
