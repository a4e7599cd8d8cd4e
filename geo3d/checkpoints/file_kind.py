"""What a file is that was given as weights and is none, by its first bytes."""

from __future__ import annotations

#: How files begin -> what they are, and what to do.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"ply\r", "a PLY file of points"),
    (b"ply\n", "a PLY file of points"),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes; convert it to safetensors"),
    (b"\x93NUMPY", "a NumPy array; read_points reads those of points"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"BZh", "compressed by bzip2; unpack it"),
    (b"\xfd7zXZ", "compressed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"\x7fELF", "a program or library"),
    (b"version https://git-lfs", "a pointer of git-LFS that stands for the file itself; fetch it by `git lfs pull`"),
    (b"version https://hawser", "a pointer of git-LFS that stands for the file itself; fetch it by `git lfs pull`"),
)
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")
#: Bytes that :func:`kind_of` looks at.
LOOKED_AT = 4096
_SHOWN = 40


def kind_of(head: bytes) -> str | None:
    """What a file is by its first :data:`LOOKED_AT` bytes, in words and with advice; None where it may be weights."""
    if not head:
        return "empty; fetch it again"
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head[257:262] == b"ustar" and b"sys_info" not in head[:100] and b"pickle" not in head[:100]:
        return "a tar archive; unpack it"
    if not any(head):
        return "nothing but zeros at its beginning; fetch it again"
    text = _text(head)
    if text is None:
        return None
    plain = text.lstrip("\ufeff \t\r\n")
    if plain.lower().encode().startswith(_HTML):
        return "a page of HTML, such as a server sends in place of a file; fetch the file itself"
    shown = " ".join(plain[:_SHOWN].split())
    return f"text that begins with {shown!r}"


def _text(head: bytes) -> str | None:
    """The bytes as text without control characters; None where they are none."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or len(head) < LOOKED_AT:  # else a character was cut at the end
            return None
        text = head[: error.start].decode()
    return text if all(c.isprintable() or c in "\t\r\n\ufeff" for c in text) else None


__all__ = ["LOOKED_AT", "kind_of"]
