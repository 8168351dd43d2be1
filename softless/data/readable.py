"""Which images can be used: every file of every split decoded whole before anything is done with
one.

A file that was found whole is known by place, size and time of change, with a digest of its
content, and is not read again: within a process always, and for later ones where finding it out
took more than two seconds (SOFTLESS_CACHE names the folder; `~/.cache/softless` by default).
"""

import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from softless.data import progress
from softless.data.cores import on_all_cores
from softless.data.findings import Fault, named, refusal
from softless.data.images import MAX_PIXELS, MIN_SIDE, BadImage, content, limit
from softless.data.notices import notice
from softless.data.reading import read_whole
from softless.data.samples import ArraySamples, FileSamples, Samples
from softless.errors import DataError, StorageError, UsageError, located, unknown
from softless.experiment.ranges import Outside, Range
from softless.models.durable import discard, make_folder, move, reason_of, write_bytes

POLICIES = ("stop", "skip", "clip")  # of all fields named `faults`
_log = logging.getLogger("softless.data")
_known: dict[int, int] = {}  # files that this process found whole, and what is in them


def sift(root: Path, parts: Mapping[str, Samples], policy: str) -> dict[str, Samples]:
    """The parts, once every image file in them was decoded; of arrays it is known which images
    cannot be used.

    Args:
        root: what names in messages are relative to.
        parts: "train", "val", "test" or "all" to its samples.
        policy: "stop" at images that cannot be used, or "skip" to leave them out, said with their
            number; `left_out` of a part holds them.

    Raises:
        DataError: images cannot be used (all in one error), or a part or class has none left.
        UsageError: another policy.
    """
    refuse_policy(policy)
    files = {
        part: samples.paths() for part, samples in parts.items() if isinstance(samples, FileSamples)
    }
    channels = max((samples.channels for samples in parts.values()), default=3)
    scale = next((samples.scale for samples in parts.values()), None)
    bad = unreadable([path for paths in files.values() for path in paths], channels, scale)
    faults = {
        part: {
            index: fault_of(path, bad[path], root)
            for index, path in enumerate(paths)
            if path in bad
        }
        for part, paths in files.items()
    }
    faults |= {
        part: dict(samples.unusable)
        for part, samples in parts.items()
        if isinstance(samples, ArraySamples)
    }
    wrong = [fault for part_faults in faults.values() for fault in part_faults.values()]
    if wrong and policy == "stop":
        raise refusal(root, wrong, "mend or remove them, or leave them out with data.faults=skip")
    usable = {
        part: _without(root, part, samples, faults.get(part, {})) for part, samples in parts.items()
    }
    if wrong:
        say_left_out(
            root,
            {part: (len(part_faults), len(parts[part])) for part, part_faults in faults.items()},
        )
    return usable


def refuse_policy(policy: str, *, boxes: bool = False) -> None:
    """Raise a UsageError for a policy that does not exist, or has no effect on data without
    boxes.
    """
    if policy not in POLICIES:
        raise unknown("policy for faults", policy, POLICIES)
    if policy == "clip" and not boxes:
        raise UsageError(
            "data.faults=clip cuts boxes to their image, and these data have none: set stop or skip"
        )


def say_left_out(root: Path, counts: Mapping[str, tuple[int, int]]) -> None:
    """One line on what is not used: part -> (images left out, of how many)."""
    counts_text = ", ".join(
        f"{unusable} of {total} images of {part}"
        for part, (unusable, total) in counts.items()
        if unusable
    )
    smaller = [part for part in ("val", "test") if counts.get(part, (0, 0))[0]]
    note = f"; scores are of the images of {' and '.join(smaller)} that are left" if smaller else ""
    notice(f"{root}: data.faults=skip leaves out {counts_text}, which cannot be used{note}")


def fault_of(path: Path, error: BadImage, root: Path) -> Fault:
    """A file that cannot be read, as reports name it."""
    return Fault(named(path, root), error.reason, error.kind)


def unreadable(
    files: Sequence[Path], channels: int = 3, scale: Range | None = None, page: int = 0
) -> dict[Path, BadImage]:
    """The files that cannot be read, each with its error; all others were decoded to their last
    byte, now or before.

    Decoding is shared among as many threads as this process has cores. Values outside a declared
    range are counted and said each time: files that have some are not remembered.
    """
    if not files:
        return {}
    start = time.monotonic()
    rule = _rule(channels, scale) + (f" page {page}" if page else "")
    store = _store(files, rule)
    _known.update(_recalled(store))
    keys = [_key(path, rule) for path in files]
    unchecked = [index for index, key in enumerate(keys) if key is None or key not in _known]
    bad: dict[Path, BadImage] = {}
    outside, cut = Outside(), set[int]()
    look = partial(_looked_at, channels=channels, scale=scale, page=page)
    with closing(on_all_cores(look, [files[index] for index in unchecked])) as read:
        for index, outcome in zip(
            unchecked, progress.track(read, len(unchecked), "reading all images once"), strict=True
        ):
            if isinstance(outcome, BadImage):
                bad[files[index]] = outcome
            elif (key := keys[index]) is not None:
                _known[key] = outcome.content
                if any(outcome.outside):
                    outside.add(outcome.outside)
                    cut.add(key)
    seconds = time.monotonic() - start
    summary = (
        f"{len(files):,} images: {len(unchecked):,} decoded, {len(files) - len(unchecked):,} known "
        f"to be whole, {len(bad):,} cannot be read"
    )
    (notice if seconds > progress.PATIENCE else _log.info)(f"{summary} ({seconds:.0f} s)")
    if scale is not None and (sentence := outside.sentence(f"{len(files):,}", scale)):
        notice(sentence)
    if seconds > progress.PATIENCE and len(unchecked) > len(bad):
        intact = (
            key for key, path in zip(keys, files, strict=True) if path not in bad and key not in cut
        )
        _remember(store, {key: _known[key] for key in intact if key is not None and key in _known})
    return bad


def contents(samples: FileSamples) -> str:
    """A digest of what is in the files of all samples, and of outlines on them; files found whole
    are not read again.
    """
    paths, rule = samples.paths(), _rule(samples.channels, samples.scale)
    with closing(on_all_cores(partial(_content_of, rule=rule), paths)) as each:
        digests = np.fromiter(each, dtype=">u8", count=len(paths))
    digest = hashlib.sha256(digests.tobytes())
    samples.update_outlines(digest)
    return digest.hexdigest()


class _Whole(NamedTuple):
    """What is in a file that can be read."""

    content: int
    outside: tuple[int, int]  # values below and above a declared range


def _looked_at(path: Path, channels: int, scale: Range | None, page: int) -> _Whole | BadImage:
    """What is in a file that can be read, or why it cannot."""
    try:
        decoded = read_whole(path, channels, scale, page=page)
        return _Whole(content(path), decoded.outside)
    except BadImage as error:
        return error


def _content_of(path: Path, rule: str) -> int:
    key = _key(path, rule)
    remembered = None if key is None else _known.get(key)
    return content(path) if remembered is None else remembered


def _without(root: Path, part: str, samples: Samples, faults: Mapping[int, Fault]) -> Samples:
    """The samples but for those at the places of `faults`."""
    if not faults:
        return samples
    usable = samples.take([index for index in range(len(samples)) if index not in faults])
    usable.left_out = tuple(faults.values())
    if samples.targets.ndim == 2:
        return usable
    lost = sorted(
        {label for label in samples.targets.tolist() if label >= 0} - set(usable.targets.tolist())
    )
    if lost:
        examples = ", ".join(
            sorted({
                samples.name(int(np.flatnonzero(samples.targets == label)[0])) for label in lost
            })[:10]
        )
        raise DataError(
            f"{root}: without the images that cannot be used, {len(lost)} classes of {part} have "
            f"none left (such as {examples}): "
            "mend some, or remove the classes"
        )
    return usable


def _key(path: Path, rule: str) -> int | None:
    """What tells this content of this file from any other, 64 bits; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    identity = f"{path.absolute()}\0{status.st_size} {status.st_mtime_ns} {rule}"
    return int.from_bytes(
        hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=8).digest(), "big"
    )


def _rule(channels: int, scale: Range | None) -> str:
    """What decides whether a file is whole, beside what is in it."""
    limits = f"{limit('SOFTLESS_MAX_PIXELS', MAX_PIXELS)} {limit('SOFTLESS_MIN_SIDE', MIN_SIDE)}"
    return f"{limits} {channels} {PIL.__version__}{'' if scale is None else f' {scale}'}"


def _store(files: Sequence[Path], rule: str) -> Path:
    """Where it is kept what is known of such files."""
    setting = (
        os.environ.get("SOFTLESS_CACHE")
        or os.environ.get("LOCALAPPDATA")
        or os.environ.get("XDG_CACHE_HOME")
    )
    base = located(setting) if setting else Path.home() / ".cache"
    folder = base if os.environ.get("SOFTLESS_CACHE") else base / "softless"
    identity = f"{Path(os.path.commonpath([path.parent for path in files])).absolute()}\0{rule}"
    return (
        folder
        / "contents"
        / hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    )


def _recalled(store: Path) -> dict[int, int]:
    try:
        stored = store.read_bytes()
    except OSError:  # none yet
        return {}
    pairs = np.frombuffer(stored[: len(stored) // 16 * 16], dtype=">u8").reshape(-1, 2)
    return dict(pairs.tolist())


def _remember(store: Path, digests: Mapping[int, int]) -> None:
    """Keep what is known for the next process; without it that one decodes again."""
    # other processes may read the same images
    beside = store.with_name(f"{store.name}.{os.getpid()}")
    try:
        make_folder(store.parent)
        write_bytes(beside, np.array(sorted(digests.items()), dtype=">u8").tobytes())
        move(beside, store)
    except StorageError as error:
        discard(beside)
        notice(
            f"cannot write {store}: {reason_of(error)}; the images are decoded again at the next "
            "start"
        )
