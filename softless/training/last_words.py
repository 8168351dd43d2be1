"""What each rank of a run said last: RUN/ranks/rankR.txt."""

import os
import time
from contextlib import suppress
from pathlib import Path

from softless.errors import StorageError
from softless.experiment.folder import RANKS
from softless.models.durable import delete, make_folder, write_text

# names a file in which rank 0 notes the folder of the results, for the process that started the
# ranks
NOTED = "SOFTLESS_RANKS"


class LastWords:
    """Of one rank, in the folder of the results; none before that folder is this command's.

    Args:
        folder: of the results.
        rank: whose words.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank, self.begun = folder, rank, time.time()
        self.ready = False

    def begin(self) -> None:
        """The folder is this command's: what an earlier one said there goes."""
        self.ready = True
        with suppress(StorageError):
            delete(file_of(self.folder, self.rank))
        if self.rank == 0 and (noted := os.environ.get(NOTED)):
            write_text(Path(noted), str(self.folder.absolute()), errors="surrogateescape")

    def leave(self, text: str) -> None:
        """Write them. A disk that refuses hides no error."""
        if self.ready:
            leave(self.folder, self.rank, text)

    def of(self, rank: int) -> str:
        """What another rank left since this one began, on one line; nothing where it left
        nothing.
        """
        file = file_of(self.folder, rank)
        try:
            return (
                " ".join(file.read_text("utf-8", "replace").split())
                if file.stat().st_mtime >= self.begun
                else ""
            )
        except OSError:
            return ""


def file_of(folder: Path, rank: int) -> Path:
    """Where the last words of a rank stand."""
    return folder / RANKS / f"rank{rank}.txt"


def leave(folder: Path, rank: int, text: str) -> None:
    """Write the last words of a rank, if there is such a folder and the disk lets it."""
    if folder.is_dir():
        with suppress(StorageError):
            make_folder(folder / RANKS)
            write_text(file_of(folder, rank), text.rstrip() + "\n", errors="backslashreplace")
