"""The checkpoints of a run: each whole, digested and on disk before it counts; the newest good one is found, the others are named.

    checkpoints/step-000000123-epoch-0004.pt      the state
    checkpoints/step-000000123-epoch-0004.json    its manifest: size, SHA-256, place, versions, and a digest of the manifest itself

The manifest is written after the state is on disk, and a state without one does not count.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch

from softless.errors import CheckpointError
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

FORMAT = 1
NAME = re.compile(r"step-(\d{9,})-epoch-(\d{4,})\.(pt|json)")
Place = tuple[
    int, int
]  # updates done, and the epoch under way: the end of an epoch is another place than its last step
ROOM = 1.2  # a warning is given when the disk has less free than so many times the last state
_log = logging.getLogger("softless.training")


DAMAGED = "damaged"  # where those go that are not what was written


class _BadError(Exception):
    """Why a checkpoint does not count."""


class _UnfinishedError(_BadError):
    """A state without a manifest: its writing was never acknowledged."""


@dataclass(frozen=True)
class Checkpoints:
    """The folder of checkpoints; the last `keep` are kept, counted from those that are known to be good."""

    folder: Path
    keep: int = 2
    good: set[Place] = field(default_factory=set, compare=False)  # written or verified by this process
    damaged: dict[Place, str] = field(default_factory=dict, compare=False)  # passed over by `newest`, with the reason

    def save(self, state: Mapping[str, Any], place: Place, facts: Mapping[str, Any]) -> Path:
        """Write a state; when this returns it is on disk and counts. Older ones beyond `keep` are deleted afterwards.

        Args:
            state: tensors, numbers, texts and containers of them.
            place: updates done and epoch; names the files.
            facts: what the manifest says beside the digest.

        Raises:
            StorageError: it could not be written; the others are as they were.
        """
        make_folder(self.folder)
        data, manifest = self._files(place)
        delete(manifest)  # a state that is written anew does not count meanwhile
        self.good.discard(place)
        digest = write_digested(data, lambda file: torch.save(dict(state), cast("Any", file)))
        told = {
            "format": FORMAT,
            "file": data.name,
            "step": place[0],
            "epoch": place[1],
            "bytes": digest.bytes,
            "sha256": digest.sha256,
            **facts,
        }
        write_text(manifest, json.dumps({**told, "manifest_sha256": _digest(told)}, indent=1) + "\n")
        self.good.add(place)
        self._prune(place)
        self._warn_of_room(digest)
        return data

    def newest(self) -> dict[str, Any] | None:
        """The newest state whose digest is right; newer ones that are not are named in a warning.

        None where none was ever finished: there is none at all, or their writing was cut short.

        Raises:
            CheckpointError: there are finished checkpoints and none is good; each is named with its reason.
        """
        self.damaged.clear()
        reasons = []
        for place in self.places():
            try:
                state = self._read(place)
            except _BadError as reason:
                reasons.append(f"{self._files(place)[0].name}: {reason}")
                if not isinstance(reason, _UnfinishedError):
                    self.damaged[place] = str(reason)
                continue
            self.good.add(place)
            _say_passed_over(reasons)
            if reasons:
                _log.warning("continuing from %s; %d newer passed over", self._files(place)[0], len(reasons))
            return state
        if self.damaged:
            raise CheckpointError(
                f"none of the {len(reasons)} checkpoints in {self.folder} is good ({'; '.join(reasons[:10])}): bring one back from a "
                "backup, its .pt and its .json, and give --resume again; or start anew with --overwrite"
            )
        _say_passed_over(reasons)
        return None

    def set_aside(self) -> None:
        """Move those that `newest` found damaged into `damaged/`, so that they count no more; a line names them.

        Raises:
            StorageError: the folder cannot be written.
        """
        if not self.damaged:
            return
        aside = self.folder / DAMAGED
        make_folder(aside)
        for place in self.damaged:
            for path in self._files(place):
                if path.exists():
                    move(path, aside / path.name)
        with storing(self.folder):
            sync_folder(self.folder)
        names = ", ".join(self._files(place)[0].stem for place in self.damaged)
        _log.warning("the damaged checkpoints are in %s now: %s", aside, names)
        self.damaged.clear()

    def places(self) -> list[Place]:
        """The places of which there is a state or a manifest, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            {(int(found[1]), int(found[2])) for path in self.folder.iterdir() if (found := NAME.fullmatch(path.name))},
            reverse=True,
        )

    def clear(self) -> None:
        """Delete all of them."""
        delete_folder(self.folder)

    def sweep(self) -> None:
        """Delete what a killed process left half written."""
        for path in self.folder.glob("*.tmp") if self.folder.is_dir() else ():
            delete(path)

    def _files(self, place: Place) -> tuple[Path, Path]:
        stem = f"step-{place[0]:09d}-epoch-{place[1]:04d}"
        return self.folder / f"{stem}.pt", self.folder / f"{stem}.json"

    def _read(self, place: Place) -> dict[str, Any]:
        data, manifest = self._files(place)
        told = _manifest(manifest)
        try:
            found = digest_of(data)
        except OSError as error:
            raise _BadError(f"cannot be read ({error.strerror})") from error
        if found != Digest(told["bytes"], told["sha256"]):
            raise _BadError(
                f"{found.bytes} bytes with SHA-256 {found.sha256[:12]}…, its manifest says {told['bytes']} with {told['sha256'][:12]}…"
            )
        try:
            state: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            blocked = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            raise _BadError(
                f"it holds more than tensors, numbers and texts ({blocked[1] if blocked else 'code'})"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise _BadError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        return state

    def _prune(self, written: Place) -> None:
        """Delete what lies beyond the newest `keep`, and states that were never finished.

        Those that this process wrote or verified are kept before others, and the one written just now always: a whole file may still be a
        damaged one.
        """
        whole = [place for place in self.places() if all(path.exists() for path in self._files(place))]
        whole.sort(key=lambda place: (place == written, place in self.good, place), reverse=True)
        kept = {written, *whole[: self.keep]}
        for place in self.places():
            if place not in kept:
                data, manifest = self._files(place)
                delete(manifest)
                delete(data)
                self.good.discard(place)
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


def _say_passed_over(reasons: list[str]) -> None:
    for line in reasons:
        _log.warning("passed over the checkpoint %s", line)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stated = told.pop("manifest_sha256")
        kind = told["format"]
    except FileNotFoundError as error:
        raise _UnfinishedError("it has no manifest: its writing was not finished") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _BadError("its manifest cannot be read") from error
    if stated != _digest(told):
        raise _BadError("its manifest is not what was written")
    if kind != FORMAT:
        raise _BadError(f"it has format {kind}, and this softless reads format {FORMAT}")
    return told


def _digest(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
