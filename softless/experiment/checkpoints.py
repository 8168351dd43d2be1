"""The checkpoints of a run: each whole, digested and on disk before it counts; the newest good one
is found, the others are named.

    checkpoints/step-000000123-epoch-0004.pt      the state
    checkpoints/step-000000123-epoch-0004.json    its manifest: size, SHA-256, position, versions, and a digest of itself

The manifest is written after the state is on disk, and a state without one does not count.
"""

import copy
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from softless.errors import CheckpointError, DataError
from softless.models.archive import check_torch, read_archive
from softless.models.durable import (
    Digest,
    delete,
    delete_folder,
    digest_of,
    make_folder,
    move,
    size,
    storing,
    sync_folder,
    write_digested,
    write_text,
)
from softless.models.records import DIGEST, check, read_json, sealed, unsealed, whole

FORMAT, SEAL = 1, "manifest_sha256"
NAME = re.compile(r"step-(\d{9,})-epoch-(\d{4,})\.(pt|json)")
# updates done, and the epoch under way: the end of an epoch is another position than its last step
CheckpointPosition = tuple[int, int]
ROOM = 1.2  # a warning is given when the disk has less free than so many times the last state
_log = logging.getLogger("softless.training")


DAMAGED = "damaged"  # where those go that are not what was written


class _BadError(Exception):
    """Why a checkpoint does not count."""


class _UnfinishedError(_BadError):
    """A state without a manifest: its writing was never acknowledged."""


@dataclass(frozen=True)
class Checkpoints:
    """The folder of checkpoints; the last `keep` are kept, counted from those that are known to be
    good.
    """

    folder: Path
    keep: int = 2
    # written or verified by this process
    good: set[CheckpointPosition] = field(default_factory=set, compare=False)
    # passed over by `newest`, with the reason
    damaged: dict[CheckpointPosition, str] = field(default_factory=dict, compare=False)

    def save(
        self, state: Mapping[str, Any], position: CheckpointPosition, facts: Mapping[str, Any]
    ) -> Path:
        """Write a state; when this returns it is on disk and counts. Older ones beyond `keep` are
        deleted afterwards.

        Args:
            state: tensors, numbers, texts and containers of them.
            position: updates done and epoch; names the files.
            facts: what the manifest says beside the digest.

        Raises:
            StorageError: it could not be written; the others are as they were.
        """
        make_folder(self.folder)
        data, manifest = self._files(position)
        delete(manifest)  # a state that is written anew does not count meanwhile
        self.good.discard(position)
        digest = write_digested(data, lambda file: torch.save(dict(state), cast("Any", file)))
        content = {
            "format": FORMAT,
            "file": data.name,
            "step": position[0],
            "epoch": position[1],
            "bytes": digest.bytes,
            "sha256": digest.sha256,
            **facts,
        }
        write_text(manifest, json.dumps(sealed(content, SEAL), indent=1) + "\n")
        self.good.add(position)
        self._prune(position)
        self._warn_of_room(digest)
        return data

    def newest(self) -> dict[str, Any] | None:
        """The newest state whose digest is right; newer ones that are not are named in a warning.

        None where none was ever finished: there is none at all, or their writing was cut short.

        Raises:
            CheckpointError: there are finished checkpoints and none is good; each is named with its
                reason.
            DataError: this torch is not safe for files of others.
        """
        self.damaged.clear()
        reasons = []
        positions = self.positions()
        if positions:
            check_torch(self.folder)
        for position in positions:
            try:
                state = self._read(position)
            except _BadError as reason:
                reasons.append(f"{self._files(position)[0].name}: {reason}")
                if not isinstance(reason, _UnfinishedError):
                    self.damaged[position] = str(reason)
                continue
            self.good.add(position)
            _say_passed_over(reasons)
            if reasons:
                _log.warning(
                    "continuing from %s; %d newer passed over",
                    self._files(position)[0],
                    len(reasons),
                )
            return state
        if self.damaged:
            raise CheckpointError(
                f"none of the {len(reasons)} checkpoints in {self.folder} is good "
                f"({'; '.join(reasons[:10])}): bring one back from a "
                "backup, its .pt and its .json, and give --resume again; or start anew with "
                "--overwrite"
            )
        _say_passed_over(reasons)
        return None

    def set_aside(self) -> None:
        """Move those that `newest` found damaged into `damaged/`, so that they count no more; a
        line names them.

        Raises:
            StorageError: the folder cannot be written.
        """
        if not self.damaged:
            return
        aside = self.folder / DAMAGED
        make_folder(aside)
        for position in self.damaged:
            for path in self._files(position):
                if path.exists():
                    move(path, aside / path.name)
        with storing(self.folder):
            sync_folder(self.folder)
        names = ", ".join(self._files(position)[0].stem for position in self.damaged)
        _log.warning("the damaged checkpoints are in %s now: %s", aside, names)
        self.damaged.clear()

    def positions(self) -> list[CheckpointPosition]:
        """The positions of which there is a state or a manifest, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            {
                (int(match[1]), int(match[2]))
                for path in self.folder.iterdir()
                if (match := NAME.fullmatch(path.name))
            },
            reverse=True,
        )

    def clear(self) -> None:
        """Delete all of them."""
        delete_folder(self.folder)

    def sweep(self) -> None:
        """Delete what a killed process left half written."""
        for path in self.folder.glob("*.tmp") if self.folder.is_dir() else ():
            delete(path)

    def _files(self, position: CheckpointPosition) -> tuple[Path, Path]:
        stem = f"step-{position[0]:09d}-epoch-{position[1]:04d}"
        return self.folder / f"{stem}.pt", self.folder / f"{stem}.json"

    def _read(self, position: CheckpointPosition) -> dict[str, Any]:
        data, manifest = self._files(position)
        recorded = _manifest(manifest)
        try:
            digest = digest_of(data)
        except OSError as error:
            raise _BadError(f"cannot be read ({error.strerror})") from error
        if digest != Digest(recorded["bytes"], recorded["sha256"]):
            raise _BadError(
                f"{digest.bytes} bytes with SHA-256 {digest.sha256[:12]}…, its manifest says "
                f"{recorded['bytes']} with {recorded['sha256'][:12]}…"
            )
        try:
            state = read_archive(data)
        except DataError as error:
            raise _BadError(str(error).removeprefix(f"{data} ")) from error
        # the file may be deleted while the run goes on
        return {name: _owned(value) for name, value in state.items()}

    def _prune(self, written: CheckpointPosition) -> None:
        """Delete what lies beyond the newest `keep`, and states that were never finished.

        Those that this process wrote or verified are kept before others, and the one written just
        now always: a whole file may still be a damaged one.
        """
        complete = [
            position
            for position in self.positions()
            if all(path.exists() for path in self._files(position))
        ]
        complete.sort(
            key=lambda position: (position == written, position in self.good, position),
            reverse=True,
        )
        survivors = {written, *complete[: self.keep]}
        for position in self.positions():
            if position not in survivors:
                data, manifest = self._files(position)
                delete(manifest)
                delete(data)
                self.good.discard(position)
        with storing(self.folder):
            sync_folder(self.folder)

    def _warn_of_room(self, last: Digest) -> None:
        with storing(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < ROOM * last.bytes:
            _log.warning(
                "the disk of %s has %s free, and the next checkpoint needs %s",
                self.folder,
                size(free),
                size(last.bytes),
            )


def _owned(value: Any) -> Any:
    """The same with tensors in memory of their own, in place of parts of the file."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        copied = copy.copy(value)  # with the versions that a state dict carries
        copied.update({name: _owned(inner) for name, inner in value.items()})
        return copied
    if isinstance(value, list | tuple):
        return type(value)(_owned(inner) for inner in value)
    return value


def _say_passed_over(reasons: list[str]) -> None:
    for line in reasons:
        _log.warning("passed over the checkpoint %s", line)


def _manifest(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise _UnfinishedError("it has no manifest: its writing was not finished")
    try:
        content = read_json(path, largest=1 << 20)
    except DataError as error:
        raise _BadError("its manifest cannot be read") from error
    try:
        check(content, {SEAL: DIGEST, "format": whole(0)}, path)
        facts = unsealed(content, path, SEAL)
    except DataError as error:
        raise _BadError("its manifest is not what was written") from error
    if facts["format"] != FORMAT:
        raise _BadError(f"it has format {facts['format']}, and this softless reads format {FORMAT}")
    try:
        check(
            facts,
            {
                "bytes": whole(0, 1 << 60),
                "sha256": DIGEST,
                "step": whole(0, 1 << 60),
                "epoch": whole(0),
            },
            path,
        )
    except DataError as error:
        raise _BadError("its manifest is no manifest of a checkpoint") from error
    return facts
