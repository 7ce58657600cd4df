from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mintbook.errors import FormatError
from mintbook.store.untrusted import check_safetensors_header, ordinary_file


def test_a_file_of_the_folder_is_ordinary_through_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    folder = tmp_path.parent / f"{tmp_path.name}-link"
    folder.symlink_to(tmp_path)
    for name in ("file", "link"):
        assert ordinary_file(folder, name).read_text() == "x"


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside").write_text("x")
    (folder / "file").symlink_to(target)
    with pytest.raises(FormatError, match="leads out of its folder"):
        ordinary_file(folder, "file")
    with pytest.raises(FormatError, match="leads out of its folder"):
        ordinary_file(folder, "../outside")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no readable absent: No such file"):
        ordinary_file(tmp_path, "absent")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FormatError, match="not an ordinary file"):
            ordinary_file(tmp_path, name)


def test_an_honest_header_passes(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    check_safetensors_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", bytes(100), struct.pack("<Q", 3) + b"{}", struct.pack("<Q", 2**63) + b"{}"],
    ids=["nothing", "no length", "length 0", "length past the end", "length past everything"],
)
def test_dishonest_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"not a readable safetensors file: it announces"):
        check_safetensors_header(path)


def test_a_header_of_many_megabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 64 << 20))
        file.truncate(128 << 20)
    with pytest.raises(FormatError, match="8388608 can be"):
        check_safetensors_header(path)
