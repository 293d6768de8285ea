"""The folder of a server in which people lay disk images to be imported: listed, read, never changed."""

from dataclasses import dataclass
from pathlib import Path

from kmgr.config import Config
from kmgr.errors import NotAllowed, NotFound, Refused

_MOST = 500


@dataclass(frozen=True, slots=True)
class FolderFile:
    """One file there; `changed_at` in ms."""

    name: str
    size_bytes: int
    changed_at: int


class Folder:
    """The folder; all of it blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, config: Config) -> "Folder":
        """Return the folder of a server."""
        return cls(Path(config.imports_folder) if config.imports_folder else config.data_dir / "imports")

    def files(self) -> tuple[FolderFile, ...]:
        """Return the files in it, newest first; none if there is no such folder or it may not be read."""
        try:
            found = [_seen(file) for file in self.path.iterdir() if _is_offer(file)]
        except OSError:
            return ()
        return tuple(sorted(found, key=lambda one: (-one.changed_at, one.name))[:_MOST])

    def file(self, name: str) -> Path:
        """Return a file in it by its name; raise `NotFound` for what is none, or leads elsewhere."""
        path = self.path / name
        if not name or "/" in name or not _is_offer(path):
            raise NotFound(f"there is no file {name!r} in {self.path}")
        return path

    def inside(self, path: str) -> Path:
        """Return a file that is given by its whole path; raise `NotAllowed` for one that lies anywhere else.

        Whoever administers the grid need not be whoever may read all files of its servers.
        """
        whole = Path(path)
        if not whole.is_absolute():
            raise Refused(f"{path} is not a whole path: begin it with /")
        if whole.parent.resolve() != self.path.resolve():
            raise NotAllowed(
                f"{path} is not in {self.path}, and files elsewhere are not read for the web: lay it there, or run "
                "kmgr image import on the server"
            )
        return self.file(whole.name)


def _is_offer(path: Path) -> bool:
    # A link would let whoever may write here have any file of the server read.
    return not path.name.startswith(".") and path.is_file() and not path.is_symlink()


def _seen(path: Path) -> FolderFile:
    told = path.stat()
    return FolderFile(path.name, told.st_size, told.st_mtime_ns // 1_000_000)
