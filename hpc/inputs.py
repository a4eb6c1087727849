"""What identifies a run's input files: size, times and a cheap digest, so that others in their place are noticed.

Files of up to 64 MiB are read whole for their SHA-256. Of a larger one 256 blocks of 64 KiB are read, evenly spread
from its first to its last byte: all that was written anew is noticed, an edit that leaves size and all these blocks
alone is not; where anything was done to such a file since, that is said. A file whose size, times and inode are as
recorded is not read again. Where a run has very many inputs, as a folder of a million pictures, folders are recorded by
the names, sizes and times of their files, which are not read.

Where the names of folders decide results, as those of classes do, they are an input like a file, see `FolderNames`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Final

from hpc.store.plain import require_regular
from hpc.store.reading import is_absent

WHOLE: Final = 64 << 20
"""Bytes up to which a file is read whole."""

BLOCKS: Final = 256
BLOCK: Final = 64 << 10
"""Of a larger file so many blocks of so many bytes are read."""

MANY: Final = 10_000
"""Of more inputs the folders are recorded in place of the files."""

_FEW_IN_A_FOLDER: Final = 20
"""So many files of a folder are still recorded one by one: the weights beside a million pictures."""

_THREADS: Final = 8
"""Files looked at side by side: on a network file system each costs a wait."""

_COARSE: Final = 2_000_000_000
"""Nanoseconds: a file that was written so shortly before it was read may be written again under the same time."""


@dataclass(frozen=True, slots=True)
class FolderNames:
    """As an input of a job: the names of the folders in a folder, empty ones too, but not what is in them."""

    folder: Path


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input as it was found.

    Attributes
    ----------
    path
        As the job names it, absolute; a link is followed. With a slash at its end it stands for the names of the
        folders there.
    size
        Bytes; how many folders.
    mtime, ctime
        Nanoseconds since the epoch; ``ctime`` 0 where the times cannot be relied on.
    inode
        Number within its file system.
    digest
        ``sha256:…`` of the whole, ``sampled:…`` of blocks, ``names:…`` of folders, empty where it was not read.
    problem
        Why it could not be looked at; the other fields then mean nothing.
    """

    path: str
    size: int = 0
    mtime: int = 0
    ctime: int = 0
    inode: int = 0
    digest: str = ""
    problem: str = ""

    def same_stamp(self, other: InputFile) -> bool:
        """Say whether nothing was done to the file since: size, times and inode are equal."""
        mine, others = astuple(self)[1:5], astuple(other)[1:5]
        return mine == others and bool(self.ctime)

    def was_handled(self, other: InputFile) -> bool:
        """Say whether anything was done to the file since the other finding, as far as its times and inode tell."""
        known = self.ctime and other.ctime
        return (self.mtime, self.inode) != (other.mtime, other.inode) or bool(known and self.ctime != other.ctime)


@dataclass(frozen=True, slots=True)
class InputFolder:
    """Very many inputs of one folder: their number, bytes, and a digest of names, sizes and times."""

    path: str
    files: int
    nbytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of a run, by path."""

    files: Mapping[str, InputFile]
    folders: Mapping[str, InputFolder]

    @property
    def count(self) -> int:
        """How many files there are."""
        return len(self.files) + sum(f.files for f in self.folders.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all together."""
        files = sum(f.size for f in self.files.values() if not _is_names(f.path))
        return files + sum(f.nbytes for f in self.folders.values())

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "files": [list(astuple(f))[:6] for f in self.files.values()],
            "folders": [list(astuple(f)) for f in self.folders.values()],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Inputs:
        """Return what `as_json` wrote."""
        files = [InputFile(*row) for row in values["files"]]
        folders = [InputFolder(*row) for row in values["folders"]]
        return cls({f.path: f for f in files}, {f.path: f for f in folders})


@dataclass(frozen=True, slots=True)
class Differences:
    """What became of inputs.

    Attributes
    ----------
    changed
        A line for each file that is another now, naming it.
    doubted
        A line for each large file that something was done to, and whose sampled blocks are as before.
    touched
        Whether any file has other times but the same content.
    """

    changed: tuple[str, ...] = ()
    doubted: tuple[str, ...] = ()
    touched: bool = False


def expanded(paths: Iterable[Path | FolderNames]) -> list[str]:
    """Return what a job named, sorted, each once; a folder stands for every file below it not hidden.

    Raises
    ------
    OSError
        If a folder cannot be read now: it may hold what it held.
    """
    found: set[str] = set()
    for path in paths:
        if isinstance(path, FolderNames):
            found.add(f"{path.folder.absolute()}/")
        elif path.is_dir():
            found.update(files_below(path.absolute(), lambda name: not name.startswith(".")))
        else:
            found.add(str(path.absolute()))
    return sorted(found)


def files_below(folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[str]:
    """Yield the paths of all files below a folder; links to folders are followed, but not back to where they lie.

    Parameters
    ----------
    folder
        Where to look.
    wanted
        Says by its name whether a folder is to be looked into, and a file is one.

    Raises
    ------
    OSError
        If a folder below cannot be listed: what lies in it must not be left out without a word.
    """
    for place, below, names in os.walk(folder, onerror=_raise, followlinks=True):
        below[:] = [name for name in below if wanted(name) and not _leads_back(f"{place}/{name}")]
        yield from (f"{place}/{name}" for name in names if wanted(name))


def _raise(error: OSError) -> None:
    if not is_absent(error):
        raise error


def _leads_back(folder: str) -> bool:
    """Say whether this is a link to a folder on the way to it."""
    if not os.path.islink(folder):  # noqa: PTH114 - of a million folders
        return False
    return any(os.path.samefile(folder, above) for above in Path(folder).parents)  # noqa: PTH121


def _is_names(path: str) -> bool:
    return path.endswith("/")


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def in_folders(paths: Sequence[str]) -> frozenset[str]:
    """Return the folders that are recorded in place of their files, because there are very many of them."""
    if len(paths) <= MANY:
        return frozenset()
    counts: dict[str, int] = defaultdict(int)
    for path in paths:
        if not _is_names(path):
            counts[_folder_of(path)] += 1
    return frozenset(folder for folder, count in counts.items() if count > _FEW_IN_A_FOLDER)


def look(paths: Sequence[str], known: Mapping[str, InputFile], unread: frozenset[str]) -> list[InputFile]:
    """Return what is found at each path.

    Parameters
    ----------
    paths
        Files.
    known
        Earlier findings: a file that nothing was done to since is not read again.
    unread
        Folders whose files are not read at all.

    Raises
    ------
    OSError
        If a known file cannot be read now: it may be the same.
    """

    def one(path: str) -> InputFile:
        return _looked_at(path, known.get(path), read=_folder_of(path) not in unread)

    if len(paths) < 2:
        return [one(path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(one, paths, chunksize=16))


def _looked_at(path: str, known: InputFile | None, *, read: bool) -> InputFile:
    try:
        if _is_names(path):
            return _names_in(path)
        stat = Path(path).stat()
        found = InputFile(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        if not read:
            return found
        if known is not None and known.digest and found.same_stamp(known):
            return known
        require_regular(Path(path))
        found = replace(found, digest=digest_of(path))
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return InputFile(path, problem="is not there")
        if is_absent(error):
            return InputFile(path, problem=f"cannot be read ({error.strerror})")
        if known is not None:
            raise  # whether it is the same cannot be told now
        return InputFile(path, problem=f"cannot be read ({error.strerror or error})")
    # What is written again within the clock's coarseness would have the same times.
    return replace(found, ctime=0) if abs(time.time_ns() - stat.st_ctime_ns) < _COARSE else found


def _names_in(folder: str) -> InputFile:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    digest = hashlib.sha256("/".join(names).encode(errors="surrogateescape"))
    return InputFile(folder, len(names), digest=f"names:{digest.hexdigest()}")


def digest_of(path: str) -> str:
    """Return the digest of a file's content; see the module's first lines for what of it is read.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        digest = hashlib.sha256(str(size).encode())
        for number in range(BLOCKS):
            digest.update(os.pread(file.fileno(), BLOCK, number * (size - BLOCK) // (BLOCKS - 1)))
        return f"sampled:{digest.hexdigest()}"


def gathered(found: Iterable[InputFile], folders: frozenset[str]) -> Inputs:
    """Return the inputs of a run from what was found at each path."""
    files: dict[str, InputFile] = {}
    below: dict[str, list[InputFile]] = defaultdict(list)
    for each in sorted(found, key=lambda file: file.path):
        folder = _folder_of(each.path)
        if folder in folders and not each.problem and not _is_names(each.path):
            below[folder].append(each)
        else:
            files[each.path] = each
    return Inputs(files, {folder: _folder(folder, members) for folder, members in below.items()})


def _folder(path: str, members: Sequence[InputFile]) -> InputFolder:
    digest = hashlib.sha256()
    for each in members:
        digest.update(f"{Path(each.path).name}\0{each.size}\0{each.mtime}\n".encode(errors="surrogateescape"))
    return InputFolder(path, len(members), sum(each.size for each in members), digest.hexdigest())


def differences(before: Inputs, now: Inputs) -> Differences:
    """Compare what was recorded with what is there now."""
    changed, doubted, touched = [], [], False
    for path in sorted(before.files.keys() | now.files.keys()):
        old, new = before.files.get(path), now.files.get(path)
        if old is None or new is None:
            changed.append(f"{path}: {'is an input now and was none' if old is None else _left_out(path)}")
        elif new.problem:
            changed.append(f"{path}: {new.problem}")
        elif _is_names(path):
            changed.extend(_names_changes(path, old, new))
        elif old.size != new.size:
            changed.append(f"{path}: has {new.size} bytes and had {old.size}")
        elif old.digest != new.digest:
            changed.append(f"{path}: has other content of the same size")
        elif not new.same_stamp(old):
            touched = True
            if new.digest.startswith("sampled:") and new.was_handled(old):
                doubted.append(f"{path}: was written to or moved; its size and the blocks that were read are as before")
    for path in sorted(before.folders.keys() | now.folders.keys()):
        changed.extend(_folder_changes(path, before.folders.get(path), now.folders.get(path)))
    return Differences(tuple(changed), tuple(doubted), touched)


def _names_changes(path: str, old: InputFile, new: InputFile) -> Iterable[str]:
    if old.size != new.size:
        yield f"{path}: holds {new.size} folders, whose names count, and held {old.size}"
    elif old.digest != new.digest:
        yield f"{path}: the names of its {new.size} folders are others"


def _left_out(path: str) -> str:
    return "is no input any more" if Path(path).exists() else "is not there any more"


def _folder_changes(path: str, old: InputFolder | None, new: InputFolder | None) -> Iterable[str]:
    if old is None or new is None:
        yield f"{path}: {f'has {new.files} inputs now and had none' if new else 'holds no inputs any more'}"
    elif (old.files, old.nbytes) != (new.files, new.nbytes):
        yield f"{path}: has {new.files} inputs of {new.nbytes} bytes and had {old.files} of {old.nbytes}"
    elif old.digest != new.digest:
        yield f"{path}: names or times of its {new.files} inputs are others (so many are not read)"
