"""The files below a folder, each real folder once, whatever links lead to it."""

import logging
import os
from pathlib import Path

from .stores import AnyPath, Url

log = logging.getLogger(__name__)


def walk(folder: AnyPath, suffixes: tuple[str, ...], others: "list[str] | None" = None) -> list[tuple[str, list[str]]]:
    """Every folder below that has files with these suffixes, and their names, in order; nothing that is hidden.

    Links to folders are followed, but each real folder is read once: at its own place if that is below ``folder``, else
    through the first link. Pipes, sockets and devices are left out, with a warning that has their number.

    The paths of files with other suffixes are put into ``others``.

    Raises OSError for a folder that may not be read.
    """
    if isinstance(folder, Url):
        return folder.walk(suffixes, others)
    found, seen, special, links, again = [], set(), [], [str(folder)], []
    while links:
        places = [links.pop(0)]
        while places:
            place = places.pop()
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                again.append(place)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
            names = []
            for entry in visible:
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    (links if entry.is_symlink() else places).append(entry.path)
                elif entry.name.lower().endswith(suffixes):
                    # A broken link is a sample that cannot be read, as others are.
                    known = entry.is_file(follow_symlinks=False)
                    regular = known or os.path.isfile(entry.path) or not os.path.exists(entry.path)
                    names.append(entry.name) if regular else special.append(entry.path)
                elif others is not None:
                    others.append(entry.path)
            if names:
                found.append((place, names))
    if again:
        log.warning("left out %d links to folders that %s has elsewhere, such as %s", len(again), folder, again[0])
    if special:
        log.warning("skipped %d pipes, sockets or devices in %s, such as %s", len(special), folder, special[0])
    return sorted(found, key=lambda item: Path(item[0]).parts)
