"""The directory a conversion writes: partial, resumable, then published.

Everything goes to `DST.partial`. Its journal says which source the partial
came from and which shards are complete, so that an interrupted conversion
continues; one rename publishes the finished directory as DST.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from .files import sync_directory
from .model_format import is_converted

JOURNAL = "mlx-entropy-journal.json"


class DestinationError(ValueError):
    """The destination cannot be written, or must not be replaced."""


class Destination:
    """DST and its `DST.partial`; DestinationError if DST cannot be used."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        source_name: str,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path).expanduser().resolve()
        self.partial = Path(f"{self.path}.partial")
        self._overwrite = overwrite
        self._lock: int | None = None
        self._journal: dict[str, Any] = {}
        self._check_replaceable()
        self._check_apart(Path(source_name).expanduser())

    def _check_replaceable(self) -> None:
        if not os.path.lexists(self.path):
            return
        if self.path.is_mount() or self.path == Path.cwd():
            # A rename could not replace it, or not for the user's shell.
            raise DestinationError(
                f"{self.path} is in use; name a directory inside of it"
            )
        if self.path.is_dir() and not any(self.path.iterdir()):
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

    def open(self, identity: dict[str, Any]) -> tuple[list[Any], str | None]:
        """Create or continue the partial directory.

        Returns the records of finished shards, and a note when an earlier
        partial was continued or thrown away. `identity` is what must be
        equal for a partial to be continued.
        """
        self.partial.mkdir(parents=True, exist_ok=True)
        self._acquire()
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
        self._remove_all_but({record["file"] for record in kept})
        self._journal = {"identity": identity, "shards": kept}
        self._write_journal()
        return list(kept), note

    def _acquire(self) -> None:
        self._lock = os.open(self.partial, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # No locks on this file system.
            self.close()
            raise DestinationError(
                f"another process is converting to {self.partial}"
            ) from error

    def _read_journal(self) -> dict[str, Any] | None:
        """The journal, {} if unreadable, None in an empty directory.

        Without one, the directory is not ours to clear.
        """
        path = self.partial / JOURNAL
        temporary = _temporary(path)
        entries = set(os.listdir(self.partial)) - {temporary.name}
        if path.name not in entries:
            if entries:
                raise DestinationError(
                    f"{self.partial} was not made by mlx-entropy; remove it"
                )
            return None
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _intact(self, records: list[Any]) -> list[Any]:
        """Leading records whose file is still there at its full size."""
        kept = []
        for record in records:
            path = self.partial / record["file"]
            if not path.is_file() or path.stat().st_size != record["size"]:
                break
            kept.append(record)
        return kept

    def _remove_all_but(self, files: set[str]) -> None:
        for entry in self.partial.iterdir():
            if entry.name in files or entry.name == JOURNAL:
                continue
            if entry.is_dir() and not entry.is_symlink():
                raise DestinationError(f"unexpected directory {entry}")
            entry.unlink()

    def temporary(self, name: str) -> Path:
        """Where to write `name` until it is complete."""
        return _temporary(self.partial / name)

    def finish_shard(self, record: dict[str, Any]) -> None:
        """Give a synced `temporary(record["file"])` its name; journal it."""
        path = self.partial / record["file"]
        os.replace(_temporary(path), path)
        sync_directory(self.partial)
        record["size"] = path.stat().st_size
        self._journal["shards"].append(record)
        self._write_journal()

    def write(self, name: str, content: bytes) -> None:
        """Write a small file so that it is either whole or absent."""
        path = self.partial / name
        temporary = _temporary(path)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _write_journal(self) -> None:
        self.write(JOURNAL, json.dumps(self._journal).encode())
        sync_directory(self.partial)

    def publish(self) -> None:
        """Rename the partial to DST, replacing an earlier conversion.

        POSIX cannot swap directories: the old one is renamed away first and
        deleted last, so a crash in between leaves both complete and the same
        command finishes the job.
        """
        sync_directory(self.partial)
        self._check_replaceable()
        old = self.path.with_name(self.path.name + ".replaced")
        if is_converted(old):
            shutil.rmtree(old)
        replacing = self.path.exists()
        if replacing:
            os.rename(self.path, old)
        try:
            os.rename(self.partial, self.path)
        except OSError:
            if replacing:
                os.rename(old, self.path)
            raise
        (self.path / JOURNAL).unlink()
        sync_directory(self.path.parent)
        if replacing:
            shutil.rmtree(old)

    def close(self) -> None:
        """Let another process have the partial directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
