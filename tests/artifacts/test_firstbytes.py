"""Files that are not what their name says are named by what they are; what is right or merely cut is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from beco.artifacts.firstbytes import told
from beco.artifacts.store import Store
from beco.datasets.manifest import read_picture
from beco.datasets.palette import read_index_png
from beco.errors import UserError
from beco.networks.encoders import load_network
from beco.networks.weights import read_weights

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def saved(form: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS, "Git-LFS pointer"),
        (b"/annex/objects/SHA256E-s3--ab.jpg\n", "git-annex pointer"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"\xef\xbb\xbf\r\n  <HTML lang='de'>", "HTML page"),
        (b"<!-- saved from url --><html>", "HTML page"),
        (b"<?xml version='1.0'?><Error/>", "XML text"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "SVG drawing"),
        (b'{"message": "Not Found"}', "JSON text"),
        (b"Access denied.\n", "a text"),
        ("Zugriff verweigert für Müller\n".encode() * 100, "a text"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "gzip archive"),
        (bytes(257) + b"ustar" + bytes(20), "tar archive"),
        (b"\x00\x00\x00\x18ftypmif1" + bytes(20), "HEIF"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(20), "a video"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"8BPS" + bytes(20), "Photoshop"),
        (b"%PDF-1.7\n", "PDF"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"\x93NUMPY\x01\x00" + bytes(20), "NumPy"),
        (b"\x01\xfe\x80\x90" * 10, "no format that is known"),
        (b"", "empty"),
    ],
)
def test_what_is_no_picture_is_named_and_has_a_mend(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_picture, read_index_png):
        with pytest.raises(UserError) as caught:
            read(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: is ") and said in text and ";" in text
        assert "damaged" not in text or said == "no format that is known"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "ICO", "AVIF", "TGA"])
def test_a_picture_is_read_and_a_cut_one_is_damaged(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("a.TGA" if form == "TGA" else "a.jpg")
    path.write_bytes(saved(form))
    assert read_picture(path).shape == (16, 16, 3)
    assert not told(path, "a picture", ("of no format that is known",))
    path.write_bytes(saved(form)[:40])
    with pytest.raises(UserError, match="truncated or damaged; copy it again"):
        read_picture(path)


def test_a_pointer_called_tga_is_named_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.tga"
    path.write_bytes(LFS)
    with pytest.raises(UserError, match="Git-LFS pointer"):
        read_picture(path)


def test_a_kind_of_a_format_that_pillow_does_not_read_is_no_damage(tmp_path: Path) -> None:
    content = bytearray(saved("BMP"))
    content[30] = 9  # the compression
    path = tmp_path / "a.bmp"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"of a kind that is not read .*convert it"):
        read_picture(path)


def test_links_to_nothing_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    (tmp_path / "b.jpg").symlink_to("../.git/annex/objects/1/b.jpg")
    (tmp_path / "c.jpg").mkdir()
    for name, said in (("a", "link to gone.jpg"), ("b", "git annex get"), ("c", "a folder"), ("d", "no such picture")):
        with pytest.raises(UserError, match=said):
            read_picture(tmp_path / f"{name}.jpg")


def test_every_door_of_files_names_a_pointer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(LFS)
    for name, read in (("w.pth", read_weights), ("w.safetensors", read_weights), ("n.safetensors", load_network)):
        with pytest.raises(UserError, match=r"Git-LFS pointer.*git lfs pull"):
            read(path.rename(tmp_path / name))
        path = tmp_path / name
    with pytest.raises(UserError, match=r"Git-LFS pointer.*git lfs pull"):
        Store(path).layers  # noqa: B018


def test_what_weights_begin_with_is_theirs(tmp_path: Path) -> None:
    path = tmp_path / "w"
    torch.save({"a": torch.ones(1)}, path)
    assert told(path, "a weights file", ("a ZIP archive",)) == ""
    path.write_bytes(save({"a": torch.ones(1)}))
    assert told(path, "a weights file") == ""
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert told(path, "a weights file") == ""
