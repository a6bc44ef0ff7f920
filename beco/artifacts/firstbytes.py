"""What a file is by its first bytes, for files that are not what their name says: pointers, pages, other formats.

Nothing is decoded. It is asked once reading has failed, so that "damaged" is said of damaged files alone.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

READ = 1024
SHORTEST = 16
"""Bytes from which on a beginning that nobody knows counts as another format, and not as a cut file."""

POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git-LFS pointer", "fetch it with `git lfs pull`"),
    (b"version https://hawser.github.com/spec/", "a Git-LFS pointer", "fetch it with `git lfs pull`"),
    (b"/annex/objects/", "a git-annex pointer", "fetch it with `git annex get`"),
)
ARCHIVES = (
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"PK\x05\x06", "an empty ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
)
OFFICE = (
    *((30, name, "an Office file") for name in (b"[Content_Types].xml", b"docProps/", b"_rels/.rels", b"xl/")),
    (30, b"mimetypeapplication/vnd.oasis.opendocument", "an Office file"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office file"),
)
"""Spreadsheets and their like by the first name in the archive, and those of before 2007."""
READABLE = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (8, b"WEBP", "WebP"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
)
UNREAD = (
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")),
    *((4, b"ftyp" + brand, "HEIF") for brand in (b"mif1", b"msf1")),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"%PDF", "PDF"),
    (128, b"DICM", "DICOM"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"DDS ", "DDS"),
    (0, b"icns", "ICNS"),
    (0, b"qoif", "QOI"),
    (0, b"\x01\xda", "SGI"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"IIU\x00", "camera raw"),
    (0, b"IIRO", "camera raw"),
    (4, b"ftyp", "video"),
    (0, b"\x1a\x45\xdf\xa3", "video"),
    (8, b"AVI ", "video"),
)
DATA = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
)
PICTURES = ("a picture", "a mask", "a saliency map")
UNKNOWN = "of no format that is known"
BLANK = b"\xef\xbb\xbf \t\r\n\x0c"
NETPBM = re.compile(rb"P[1-7fFyY]\s")
PAGE = re.compile(rb"<!doctype html|<(html|head|body|title|script|meta|center|h1|div|p)\b", re.IGNORECASE)
TAG = re.compile(rb"<\?xml|<[A-Za-z][\w:.-]*[\s>]")
SERVER = "(a login page or a server's error, perhaps); download it again"


def told(path: Path | str, what: str, own: tuple[str, ...] = ()) -> str:
    """What a file is instead of `what`, with the mend, to come after its name; "" if its first bytes do not tell.

    `what` is "a picture", "a mask", "a weights file" or the like; `own` are the names (of the tables above, "a
    text" or "empty") of which the caller has more to say. A folder and a link to nothing are told as well.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        return _of_link(path)
    if path.is_dir():
        return f"is a folder, not {what}; name a file"
    try:
        with path.open("rb") as stream:
            head = stream.read(READ)
    except OSError:
        return ""
    if not head:
        return "" if "empty" in own else "is empty (0 bytes); copy it again"
    name, rest = _named(head, what)
    return f"is {name}, {rest}" if name and name not in own else ""


def endless(path: Path) -> bool:
    """Whether it is there and neither a file nor a folder: a pipe or a device, whose reading may never end."""
    try:
        return path.exists() and not (path.is_file() or path.is_dir())
    except (OSError, ValueError):  # said better when it is opened
        return False


def begins_as_picture(path: Path) -> bool:
    """Whether the first bytes of a file are those of a picture that is read, whatever it is called."""
    if endless(path):
        return False
    try:
        with path.open("rb") as stream:
            head = stream.read(READ)
    except OSError:
        return False
    return _named_picture(head, PICTURES[0]) == ("", "") and not _is_text(head)


def _of_link(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:  # the system has words for it
            return ""
    target = path.readlink()
    if "annex/objects/" in target.as_posix():
        return "is a link of git-annex whose content is not here; fetch it with `git annex get`"
    return f"is a link to {target}, which is not there; copy the file itself, or what it points to"


def _named(head: bytes, what: str) -> tuple[str, str]:
    """What begins so, and the rest of the sentence; two empty texts where that is as it should be, or unknown."""
    for start, name, mend in POINTERS:
        if head.startswith(start):
            return name, f"not the {what.partition(' ')[2]} itself; {mend}"
    if name := _of(OFFICE, head):
        mend = "save it as CSV UTF-8" if what == "a text" else "name the right file"
        return f"{name} (a spreadsheet, perhaps)", f"not {what}; {mend}"
    if name := _of(ARCHIVES, head):
        return name, f"not {what}; unpack it"
    if name := _of(DATA, head):
        return name, f"not {what}; name the right file"
    return _named_picture(head, what) or _named_text(head, what)


def _of(table: tuple[tuple[int, bytes, str], ...], head: bytes) -> str:
    return next((name for offset, mark, name in table if head.startswith(mark, offset)), "")


def _named_picture(head: bytes, what: str) -> tuple[str, str] | None:
    """As `_named`, of a format that is known; None otherwise."""
    wanted = what in PICTURES
    name = "PPM" if NETPBM.match(head) else _of(READABLE, head)
    if name and not wanted:
        return f"a picture ({name})", _other(what)
    if name and (name != "AVIF" or _avif_is_read()):
        return "", ""
    if name := name or _of(UNREAD, head):
        video = name == "video"
        mend = "cut it into pictures" if video else "convert it to PNG or JPEG"
        kind = "a video" if video else f"of the format {name}"
        return (kind, f"which is not read; {mend}") if wanted else (kind, _other(what))
    return None


def _avif_is_read() -> bool:
    from PIL import features  # here: most commands that read files open no picture

    return bool(features.check("avif"))


def _other(what: str) -> str:
    return f"not {what}; name the right file"


def _named_text(head: bytes, what: str) -> tuple[str, str]:
    """As `_named`, of texts, and of what nobody knows."""
    text = head.lstrip(BLANK)
    if PAGE.match(text) or (text.startswith(b"<!--") and PAGE.search(text)):
        return "an HTML page", f"not {what} {SERVER}"
    if TAG.match(text):
        if b"<svg" in text:
            return "an SVG drawing", f"not {what}; save it as PNG"
        return "an XML text", f"not {what} {SERVER}"
    if _is_text(head) and text[:1] in (b"{", b"["):
        return "a JSON text", f"not {what} {SERVER}"
    if _is_text(head):
        return "a text", f"not {what}; put the right file there"
    if what in PICTURES and len(head) >= SHORTEST:
        return UNKNOWN, "so it is damaged or is not read; copy it again, or convert it to PNG or JPEG"
    return "", ""


def _is_text(head: bytes) -> bool:
    """Whether it is UTF-8, perhaps cut within a character, without control characters, and not just a byte or two."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) < READ or error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return len(text) > 2 and not any(ord(char) < 32 and char not in "\t\n\r\f" for char in text)
