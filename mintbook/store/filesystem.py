"""What the store needs of the file system: one host, and bytes that are on disk before they are named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_SHARED = """
nfs nfs4 cifs smb smb2 smb3 smbfs 9p afs ceph coda lustre gpfs glusterfs beegfs ocfs2 gfs2 orangefs pvfs2 ncpfs davfs
vboxsf prl_fs fuse.sshfs fuse.s3fs fuse.gcsfuse fuse.glusterfs fuse.ceph fuse.ceph-fuse fuse.rclone fuse.juicefs
fuse.davfs fuse.smbnetfs fuse.vmhgfs-fuse
"""
NETWORK = frozenset(_SHARED.split())
"""Types of file systems that several machines write to, where SQLite's shared memory does not hold."""

MOUNTS = Path("/proc/self/mounts")


def network_type(folder: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the type of the network file system that holds ``folder``, or None when it is local or cannot be told."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    where = folder.resolve()
    best, found = -1, ""
    for line in lines:
        _, mounted, kind, *_ = line.split(" ")
        point = Path(_unescaped(mounted))
        # Of two mounts on one point the later hides the earlier, hence "not shorter" rather than "longer".
        if where.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), kind
    return found if found in NETWORK else None


def _unescaped(mounted: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        mounted = mounted.replace(code, character)
    return mounted


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk: a renamed file may otherwise be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
