"""What a board is given: folders that it keeps under the hash of their content, so that nothing is sent twice."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from edgekit.bundle import MANIFEST, Bundle, file_sha256
from edgekit.errors import InvalidInput
from edgekit.runtimes.remote._link import Link, run

STORE = "$EDGEKIT/store"
SUMS = "SHA256SUMS"
# What goes wrong is in tar's first line; its last says that something did. A full disk has many words: so the room too.
TAKE = """
cd "{store}" || exit 1
take() {{
  said=$(tar -xzf - 2>&1) || {{
    set -- $(df -Pk . | tail -n 1)
    echo "$(echo "$said" | head -n 1) ($4 KB of disk are free)" >&2
    return 1
  }}
  for key in {keys}; do (cd $key.part && sha256sum -c {sums}) >/dev/null || return 1; done
  sync
  for key in {keys}; do mv $key.part $key || return 1; done
}}
take || {{ rm -rf *.part; exit 1; }}
"""
ELF_MACHINES = {0x03: "i686", 0x28: "armv7l", 0x3E: "x86_64", 0xB7: "aarch64", 0xF3: "riscv64"}
Members = Callable[[], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True)
class Parcel:
    """One folder: `members` yields relative paths with their content."""

    key: str  # of the content, and the folder's name on the board
    name: str  # for people
    bytes: int  # unpacked
    members: Members

    @property
    def path(self) -> str:
        """Where a shell on the board finds it."""
        return f"{STORE}/{self.key}"


def bundle_parcel(bundle: Bundle) -> Parcel:
    """The files of a bundle; its manifest has the hashes of all others."""
    records = (*bundle.manifest.artifacts, *bundle.manifest.assets)
    names = [MANIFEST, *(record.path for record in records)]
    return Parcel(
        file_sha256(bundle.path / MANIFEST),
        f"the bundle {bundle.path}",
        sum(record.bytes for record in records),
        lambda: ((name, (bundle.path / name).read_bytes()) for name in names),
    )


def file_parcel(name: str, path: str, content: bytes) -> Parcel:
    """A folder with one file."""
    return Parcel(hashlib.sha256(content).hexdigest(), name, len(content), lambda: iter([(path, content)]))


def folder_parcel(name: str, folder: Path) -> Parcel:
    """The files that lie in a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    sums = "".join(f"{path.name} {file_sha256(path)}\n" for path in files)
    size = sum(path.stat().st_size for path in files)
    key = hashlib.sha256(sums.encode()).hexdigest()
    return Parcel(key, name, size, lambda: ((path.name, path.read_bytes()) for path in files))


def wheel_parcel(wheel: Path, machine: str) -> Parcel:
    """An unpacked wheel. `InvalidInput` where it holds code for another processor than the board's."""
    with zipfile.ZipFile(wheel) as archive:
        size = sum(member.file_size for member in archive.infolist())
        for member in archive.infolist():
            if ".so" in member.filename:
                with archive.open(member) as stream:
                    check_elf(stream.read(20), machine, f"{member.filename} in {wheel.name}")
    return Parcel(file_sha256(wheel), "-".join(wheel.name.split("-")[:2]), size, lambda: _unzipped(wheel.read_bytes()))


def check_elf(head: bytes, machine: str, where: str) -> None:
    """Compare the processor that a file's ELF header names with the board's, which would fail in a stranger way."""
    if head[:4] != b"\x7fELF":
        return
    number = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    if (found := ELF_MACHINES.get(number, f"ELF machine {number}")) != machine:
        raise InvalidInput(f"{where} is code for {found}, and the board is {machine}")


def send(link: Link, parcels: Sequence[Parcel]) -> None:
    """Send folders: under another name first, and renamed when every byte's hash is right over there."""
    keys = " ".join(parcel.key for parcel in parcels)
    run(link, TAKE.format(store=STORE, keys=keys, sums=SUMS), lambda stream: _write(stream, parcels))


def _write(stream: IO[bytes], parcels: Sequence[Parcel]) -> None:
    with (
        stream,
        gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for parcel in parcels:
            sums = []
            for name, content in parcel.members():
                sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
                _add(archive, f"{parcel.key}.part/{name}", content)
            _add(archive, f"{parcel.key}.part/{SUMS}", "".join(sums).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755
    archive.addfile(entry, BytesIO(content))


def unzipped_parcel(name: str, archive: bytes) -> Parcel:
    """The folder that a zip file in memory unpacks to."""
    size = sum(len(content) for _, content in _unzipped(archive))
    return Parcel(hashlib.sha256(archive).hexdigest(), name, size, lambda: _unzipped(archive))


def _unzipped(archive: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(BytesIO(archive)) as opened:
        for member in opened.infolist():
            if not member.is_dir():
                yield member.filename, opened.read(member)
