"""What the registry remembers of versions that it does not serve: a few good ones, and every bad one."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from service.served_model import ServedModel

NUM_RECENT = 3
Fingerprint = tuple[tuple[str, int, int], ...]


class BadVersion(NamedTuple):
    """A version on disk that cannot be served."""

    name: str
    version: int
    reason: str


class RecentVersions:
    """The versions besides the served ones that stay in memory for `version=`: the last few that were asked for."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[str, int], ServedModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, version: int) -> ServedModel | None:
        with self._lock:
            model = self._models.get((name, version))
            if model is not None:
                self._models.move_to_end((name, version))
            return model

    def put(self, model: ServedModel) -> None:
        with self._lock:
            self._models[model.name, model.version] = model
            self._models.move_to_end((model.name, model.version))
            if len(self._models) > NUM_RECENT:
                self._models.popitem(last=False)


class BadVersions:
    """Bad versions by the state of their files, so that the same bytes are not read again and again.

    The dictionary is replaced, never changed, so it can be read from any thread.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[Fingerprint, str]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def knows(self, name: str, version: int, found: Fingerprint) -> bool:
        """Whether these very files were found bad."""
        known = self._known.get((name, version))
        return known is not None and known[0] == found

    def add(self, name: str, version: int, found: Fingerprint, reason: str) -> None:
        self._known = {**self._known, (name, version): (found, reason)}

    def keep(self, versions: dict[str, list[int]]) -> None:
        """Forgets those that are not on disk any more."""
        self._known = {key: bad for key, bad in self._known.items() if key[1] in versions.get(key[0], ())}

    def remove(self, name: str, version: int) -> None:
        self._known = {key: bad for key, bad in self._known.items() if key != (name, version)}

    def list(self) -> list[BadVersion]:
        return [BadVersion(*key, reason) for key, (_, reason) in sorted(self._known.items())]

    def reason(self, name: str, version: int) -> str | None:
        return self._known.get((name, version), ((), None))[1]


def fingerprint(folder: Path) -> Fingerprint:
    """What changes when somebody repairs a version: names, change times (chmod counts) and sizes of its files."""
    try:
        with os.scandir(folder) as entries:
            files = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError:
        return ()
    return tuple(sorted((name, status.st_ctime_ns, status.st_size) for name, status in files))
