"""The directory a conversion writes: partial, resumable, then published.

Everything goes to DST + `PARTIAL_SUFFIX`. Its journal says which source the
partial came from, which shards are complete and which files are ours to
remove, so that an interrupted conversion continues; one rename publishes the
finished directory as DST.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .files import (
    DISK_FULL,
    naming,
    sync_directory,
    user_path,
    write_atomically,
)
from .model_format import CONFIG_KEY, is_converted, marked_config

JOURNAL = "mlx-entropy-journal.json"

PARTIAL_SUFFIX = ".mlx-entropy-partial"
"""No model is called like this: `convert` refuses the name."""

# What an earlier conversion is called until it is deleted.
_REPLACED = ".mlx-entropy-replaced-"
_SHARD = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors")
# A shard that is being written, what is complete of it, and leftovers.
_UNFINISHED = re.compile(r"(\.tmp|\.log)(\.tmp|\.old)?$")
# What running a model's Python file leaves beside it.
_BY_PYTHON = "__pycache__"


class DestinationError(ValueError):
    """The destination cannot be written, or must not be replaced."""


class Destination:
    """DST and its partial; DestinationError if DST cannot be used."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        source_name: str,
        overwrite: bool = False,
    ) -> None:
        self.path = user_path(path).resolve()
        self.partial = Path(f"{self.path}{PARTIAL_SUFFIX}")
        self._overwrite = overwrite
        self._lock: int | None = None
        self._journal: dict[str, Any] = {}
        self._check_name()
        self._finish_earlier()
        self._check_replaceable()
        self._check_apart(user_path(source_name))
        self._check_removable()
        self._check_parent()

    def _check_name(self) -> None:
        name = self.path.name
        if name.endswith(PARTIAL_SUFFIX) or name.startswith(_REPLACED):
            raise DestinationError(
                f"{self.path} has a name that unfinished conversions have; "
                "choose another"
            )

    def _check_replaceable(self) -> None:
        if not os.path.lexists(self.path):
            return
        if self.path.is_mount() or self.path == Path.cwd():
            # A rename could not replace it, or not for the user's shell.
            raise DestinationError(
                f"{self.path} is in use; name a directory inside of it"
            )
        if _is_empty_directory(self.path):
            return
        if not is_converted(self.path):
            raise DestinationError(
                f"{self.path} exists and was not made by mlx-entropy; "
                "it is not replaced"
            )
        if not self._overwrite:
            raise DestinationError(
                f"{self.path} exists; overwrite (--overwrite) replaces it"
            )

    def _check_removable(self) -> None:
        """Refuse to replace what could not, or must not, be deleted."""
        if not self.path.is_dir():
            return
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise DestinationError(
                f"{self.path} is read-only; it is not replaced"
            )
        if is_converted(self.path) and (foreign := _foreign(self.path)):
            raise DestinationError(
                f"{self.path} holds {foreign[0]}, which mlx-entropy did not "
                "make; it is not replaced"
            )

    def _check_apart(self, source: Path) -> None:
        """Refuse to write where the source would be replaced or changed."""
        if not source.exists():
            return  # A package, not a path.
        source = source.resolve()
        for place in (self.path, self.partial):
            if place == source or place in source.parents:
                raise DestinationError(f"{place} is or contains the source")
            if source in place.parents:
                raise DestinationError(f"{place} is inside the source")

    def _check_parent(self) -> None:
        """Refuse at once where the finished model could not be put."""
        parent = self.path.parent
        while not os.path.lexists(parent):
            parent = parent.parent
        if not parent.is_dir():
            raise DestinationError(f"{parent} is not a directory")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise DestinationError(f"{parent} is read-only")

    def open(
        self, identity: dict[str, Any], names: Iterable[str] = ()
    ) -> tuple[list[Any], str | None]:
        """Create or continue the partial directory.

        Returns the records of finished shards, and a note when an earlier
        partial was continued or thrown away. `identity` is what must be
        equal for a partial to be continued; `names` are the files that this
        conversion will write.
        """
        self.partial.mkdir(parents=True, exist_ok=True)
        self._acquire(self.partial)
        found = self._read_journal()
        kept, note = [], None
        if found is not None and found.get("identity") == identity:
            kept = self._intact(found.get("shards", []))
            note = f"continuing {self.partial.name}"
        elif found is not None:
            note = (
                f"{self.partial.name} is of another source, version or "
                "shard size; starting again"
            )
        found = found or {}
        ours = {*names, *_texts(found.get("files"))}
        self._remove_all_but(self._resumable(kept, identity, found), ours)
        self._journal = {
            "identity": identity,
            "files": sorted(ours),
            "replaced": self._moved_away(found),
            "shards": kept,
        }
        self._write_journal()
        return list(kept), note

    def _acquire(self, directory: Path) -> None:
        self._lock = os.open(directory, os.O_RDONLY)
        busy = f"another process is converting to {self.path}"
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # No locks on this file system.
            self.close()
            raise DestinationError(busy) from error
        try:
            same = os.path.samestat(os.fstat(self._lock), directory.stat())
        except FileNotFoundError:
            same = False
        if not same:  # The other one has just published it.
            self.close()
            raise DestinationError(busy)

    def _read_journal(self) -> dict[str, Any] | None:
        """The journal, {} if unreadable, None in an empty directory.

        Without one, the directory is not ours to clear.
        """
        path = self.partial / JOURNAL
        entries = set(os.listdir(self.partial)) - {_temporary(path).name}
        if path.name not in entries:
            if entries:
                raise DestinationError(
                    f"{self.partial} was not made by mlx-entropy; "
                    "move it out of the way"
                )
            return None
        return _parsed(path)

    def _intact(self, records: list[Any]) -> list[Any]:
        """Leading records whose file is still there at its full size."""
        kept = []
        for record in records:
            path = self.partial / record["file"]
            with suppress(FileNotFoundError):
                # Stopped between the journal's entry and the new name.
                os.replace(_temporary(path), path)
            if not path.is_file() or path.stat().st_size != record["size"]:
                break
            kept.append(record)
        return kept

    def _resumable(
        self,
        kept: list[Any],
        identity: dict[str, Any],
        journal: dict[str, Any],
    ) -> set[str]:
        """Files that a conversion with this identity goes on with."""
        files = {record["file"] for record in kept}
        if journal.get("identity") == identity:
            for log in self.partial.glob("*.safetensors.log"):
                if log.stem not in files:
                    files |= {log.name, log.with_suffix(".tmp").name}
        return files

    def _remove_all_but(self, files: set[str], ours: set[str]) -> None:
        """Remove what a conversion left, but for `files`, and nothing else."""
        rubbish = []
        for entry in _walk(self.partial):
            name = str(entry.relative_to(self.partial))
            if name in files or name == JOURNAL:
                continue
            final = _UNFINISHED.sub("", name)
            if final not in {*ours, JOURNAL} and not _SHARD.fullmatch(final):
                raise DestinationError(
                    f"{entry} was not made by mlx-entropy; "
                    "move it out of the way"
                )
            rubbish.append(entry)
        for entry in rubbish:
            entry.unlink()
            if entry.parent != self.partial:
                with suppress(OSError):  # Others may still be in it.
                    entry.parent.rmdir()

    def _moved_away(self, journal: dict[str, Any]) -> list[str]:
        """What publishing moved away before it was stopped, and is left.

        If nothing has come in its place, it goes back: what is started now
        may never finish.
        """
        names = _texts(journal.get("replaced"))
        left = [name for name in names if self._is_replaced(name)]
        if left and not os.path.lexists(self.path):
            os.rename(self.path.with_name(left.pop()), self.path)
            self._check_replaceable()
        return left

    def _is_replaced(self, name: str) -> bool:
        """Whether an earlier conversion has this name of ours."""
        return re.fullmatch(
            re.escape(_REPLACED) + "[0-9a-f]{16}", name
        ) is not None and is_converted(self.path.with_name(name))

    def temporary(self, name: str) -> Path:
        """Where to write `name` until it is complete."""
        return _temporary(self.partial / name)

    def log(self, name: str) -> Path:
        """Where to note what is complete of `temporary(name)`."""
        path = self.partial / name
        return path.with_name(path.name + ".log")

    def finish_shard(self, record: dict[str, Any]) -> None:
        """Journal a synced `temporary(record["file"])`; give it its name."""
        path = self.partial / record["file"]
        record["size"] = _temporary(path).stat().st_size
        self._journal["shards"].append(record)
        self._write_journal()
        os.replace(_temporary(path), path)
        sync_directory(self.partial)
        self.log(record["file"]).unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file so that it is either whole or absent."""
        path = self.partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            write_atomically(path, content)
            if path.parent != self.partial:
                sync_directory(path.parent)

    def _write_journal(self) -> None:
        self.write(JOURNAL, json.dumps(self._journal).encode())
        sync_directory(self.partial)

    def publish(self) -> list[str]:
        """Rename the partial to DST, replacing an earlier conversion.

        POSIX cannot swap directories: the old one is renamed away first and
        deleted last, so a crash in between leaves both complete and the same
        command finishes the job. Returns what went wrong after DST was there,
        which makes it no less complete.
        """
        sync_directory(self.partial)
        self._check_replaceable()
        self._check_removable()
        old = self._move_away()
        try:
            os.rename(self.partial, self.path)
        except OSError:
            if old is not None:
                os.rename(old, self.path)
            raise
        return self._tidy(self._journal)

    def _move_away(self) -> Path | None:
        """Rename DST to a new name, journaled first; None if there is none."""
        if not os.path.lexists(self.path) or _is_empty_directory(self.path):
            return None  # Renaming replaces an empty directory.
        old = self.path.with_name(_REPLACED + secrets.token_hex(8))
        self._journal["replaced"].append(old.name)
        self._write_journal()
        os.rename(self.path, old)
        return old

    def _tidy(self, journal: dict[str, Any]) -> list[str]:
        """Delete what DST replaced, and its journal; returns warnings."""
        warnings = []
        for name in _texts(journal.get("replaced")):
            if not self._is_replaced(name):
                continue
            try:
                shutil.rmtree(self.path.with_name(name))
            except OSError as error:
                reason = error.strerror or str(error)
                warnings.append(
                    f"{self.path} is complete, but the one it replaced is "
                    f"left in {self.path.with_name(name)}: {reason}"
                )
        try:
            (self.path / JOURNAL).unlink()
            sync_directory(self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            reason = error.strerror or str(error)
            warnings.append(
                f"{self.path} is complete, but a power cut may undo it: "
                f"{reason}"
            )
        return warnings

    def _finish_earlier(self) -> None:
        """Tidy up for a conversion that was stopped after its last rename."""
        if not (self.path / JOURNAL).is_file():
            return
        self._acquire(self.path)
        with suppress(OSError):  # A read-only one says so later.
            self._tidy(_parsed(self.path / JOURNAL))
        self.close()

    @contextmanager
    def explaining_full_disks(
        self, left: Callable[[], int], bound: str = "up to"
    ) -> Iterator[None]:
        """Has their error say where, and how much space is needed.

        `left` gives bytes that remain to be written, `bound` what those are.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            free = shutil.disk_usage(self.partial).free
            raise OSError(
                error.errno,
                f"{error.strerror}; {bound} {left() / 1e6:.1f} MB more are "
                f"needed, {free / 1e6:.1f} MB are free",
                str(self.partial),
            ) from error

    def close(self) -> None:
        """Let another process have the partial directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _foreign(directory: Path) -> list[str]:
    """What a converted model holds that its conversion did not write."""
    config: dict[str, Any] = {}
    with suppress(ValueError):
        config = marked_config(directory) or {}
    entry = config.get(CONFIG_KEY)
    listed = entry.get("files") if isinstance(entry, dict) else None
    if not isinstance(listed, list):
        # Older conversions do not say; they wrote no folders.
        return sorted(
            each.name
            for each in directory.iterdir()
            if each.is_dir() and each.name != _BY_PYTHON
        )
    ours = set(_texts(listed))
    names = (str(each.relative_to(directory)) for each in _walk(directory))
    return sorted(name for name in names if name not in ours)


def _walk(directory: Path) -> Iterable[Path]:
    """Everything below `directory` that is no folder, links unfollowed."""
    for folder, folders, files in os.walk(directory):
        if _BY_PYTHON in folders:
            folders.remove(_BY_PYTHON)
        for name in folders:
            if (Path(folder) / name).is_symlink():
                yield Path(folder) / name
        for name in files:
            yield Path(folder) / name


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _parsed(journal: Path) -> dict[str, Any]:
    """The journal's content, {} if it is damaged."""
    try:
        found = json.loads(journal.read_bytes())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _texts(value: object) -> list[str]:
    """The strings of a list from a journal, which may be damaged."""
    if not isinstance(value, list):
        return []
    return [each for each in value if isinstance(each, str)]


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
