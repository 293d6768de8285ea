"""A small read-only disk with a few files, as an ISO 9660 image with Joliet names: ECMA-119, and nothing else needed.

First-boot programs of guests look for a disk by its label. Made here instead of
by a program, it costs no process, needs no package, and is the same for the same files.

Pure.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SECTOR = 2048
_FIRST = 16  # sectors before it belong to the system
# Years since 1900, month, day, hour, minute, second, zone: the same for all, so that images can be compared.
_DATE = bytes((126, 1, 1, 0, 0, 0, 0))
_NO_DATE = b"0" * 16 + b"\0"
_FOLDER = 2
# How Joliet says that its names are UCS-2, level 3.
_UCS2 = b"%/E"
_LONGEST_LABEL = 16


@dataclass(eq=False)
class _Folder:
    name: str
    parent: "_Folder | None"
    folders: "dict[str, _Folder]" = field(default_factory=dict)
    files: "dict[str, tuple[int, int]]" = field(default_factory=dict)  # name → sector, bytes


def image(label: str, files: Mapping[str, bytes]) -> bytes:
    """Return a disk with this label; files are named by their path. A folder may have about twenty entries."""
    if len(label) > _LONGEST_LABEL or not label.isascii():
        raise ValueError(f"a label has at most {_LONGEST_LABEL} ASCII letters")
    root = _tree(files)
    folders = list(_walk(root))
    # Layout: two descriptors and their end, two path tables for each naming, the folders twice, then the files.
    tables = [_FIRST + 3 + n for n in range(4)]
    plain = {folder: tables[-1] + 1 + n for n, folder in enumerate(folders)}
    joliet = {folder: tables[-1] + 1 + len(folders) + n for n, folder in enumerate(folders)}
    at = tables[-1] + 1 + 2 * len(folders)
    content = []
    for path in sorted(files):
        _place(root, path, at, len(files[path]))
        padded = files[path] + bytes(-len(files[path]) % SECTOR)
        content.append(padded)
        at += len(padded) // SECTOR
    parts = [bytes(_FIRST * SECTOR)]
    for kind, escape, places, (little, big) in ((1, b"", plain, tables[:2]), (2, _UCS2, joliet, tables[2:])):
        size = len(_path_table(folders, places, ucs2=kind == 2, order="<"))
        parts.append(_descriptor(kind, label, escape, at, size, little, big, places[root]))
    parts.append(_sector(b"\xffCD001\x01"))
    for places, ucs2 in ((plain, False), (joliet, True)):
        parts += [_sector(_path_table(folders, places, ucs2=ucs2, order=order)) for order in "<>"]
    for places, ucs2 in ((plain, False), (joliet, True)):
        parts += [_sector(_folder(folder, places, ucs2=ucs2)) for folder in folders]
    return b"".join([*parts, *content])


def _tree(files: Mapping[str, bytes]) -> _Folder:
    root = _Folder("", None)
    for path in sorted(files):
        folder = root
        *above, name = path.split("/")
        for part in above:
            folder = folder.folders.setdefault(part, _Folder(part, folder))
        folder.files[name] = (0, 0)
    return root


def _place(root: _Folder, path: str, sector: int, size: int) -> None:
    folder = root
    *above, name = path.split("/")
    for part in above:
        folder = folder.folders[part]
    folder.files[name] = (sector, size)


def _walk(root: _Folder) -> Iterator[_Folder]:
    """Yield folders level by level, as path tables want them."""
    level = [root]
    while level:
        yield from level
        level = [below for folder in level for _, below in sorted(folder.folders.items())]


def _named(name: str, *, ucs2: bool, is_file: bool) -> bytes:
    if ucs2:
        return name.encode("utf-16-be")
    upper = name.upper()
    # Every file name has a dot and a version here; readers leave both out.
    return (f"{upper}{'' if '.' in upper else '.'};1" if is_file else upper).encode("ascii")


def _both(value: int) -> bytes:
    return struct.pack("<I", value) + struct.pack(">I", value)


def _both_short(value: int) -> bytes:
    return struct.pack("<H", value) + struct.pack(">H", value)


def _entry(name: bytes, sector: int, size: int, flags: int) -> bytes:
    rest = b"\0" + _both(sector) + _both(size) + _DATE + bytes((flags, 0, 0)) + _both_short(1)
    body = rest + bytes((len(name),)) + name
    body += b"" if len(body) % 2 else b"\0"  # with its own length in front it is even
    return bytes((len(body) + 1,)) + body


def _folder(folder: _Folder, places: Mapping[_Folder, int], *, ucs2: bool) -> bytes:
    above = folder.parent or folder
    found = [
        *(
            (_named(n, ucs2=ucs2, is_file=False), places[below], SECTOR, _FOLDER)
            for n, below in folder.folders.items()
        ),
        *((_named(n, ucs2=ucs2, is_file=True), sector, size, 0) for n, (sector, size) in folder.files.items()),
    ]
    own = _entry(b"\0", places[folder], SECTOR, _FOLDER) + _entry(b"\1", places[above], SECTOR, _FOLDER)
    return own + b"".join(_entry(*entry) for entry in sorted(found))


def _path_table(folders: Sequence[_Folder], places: Mapping[_Folder, int], *, ucs2: bool, order: str) -> bytes:
    number = {folder: n for n, folder in enumerate(folders, 1)}
    table = b""
    for folder in folders:
        name = _named(folder.name, ucs2=ucs2, is_file=False) if folder.parent else b"\0"
        table += bytes((len(name), 0)) + struct.pack(f"{order}IH", places[folder], number[folder.parent or folder])
        table += name + bytes(len(name) % 2)
    return table


def _descriptor(
    kind: int, label: str, escape: bytes, sectors: int, table: int, little: int, big: int, root: int
) -> bytes:
    def text(value: str, size: int) -> bytes:
        if kind == 2:
            return value.ljust(size // 2).encode("utf-16-be").ljust(size, b"\0")
        return value.encode("ascii").ljust(size, b" ")

    found = bytes((kind,)) + b"CD001\x01\0" + text("", 32) + text(label, 32) + bytes(8) + _both(sectors)
    found += escape.ljust(32, b"\0") + _both_short(1) + _both_short(1) + _both_short(SECTOR) + _both(table)
    found += struct.pack("<II", little, 0) + struct.pack(">II", big, 0) + _entry(b"\0", root, SECTOR, _FOLDER)
    found += text("", 128) * 4 + text("", 37) * 3 + _NO_DATE * 4 + b"\x01\0"
    return _sector(found)


def _sector(data: bytes) -> bytes:
    if len(data) > SECTOR:
        raise ValueError("too many files for one folder of such a disk")
    return data.ljust(SECTOR, b"\0")
