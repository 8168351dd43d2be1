"""TIFFs of every kind, each with the array that was written: what a reader must give, or refuse by
name.

    python -m tests.data.tiffs [benchmarks/tiffs.csv]

reads all combinations and counts them: right, refused, or wrong. None may be wrong.
"""

import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from softless.compare.record import write_csv
from softless.data.images import decode
from softless.errors import DataError
from softless.slides.files import Choice, slide_of

SIZE, TILE, ROWS = (40, 52), (16, 32), 16
AXES: dict[str, tuple[str, ...]] = {
    "layout": ("tiled", "strips"),
    "depth": ("8", "12 in 16", "16", "int16", "float"),
    "samples": ("1", "3", "3 + associated", "3 + unassociated", "3 + unspecified", "5"),
    "pages": ("one", "channels", "pyramid", "OME"),
    "orientation": tuple("12345678"),
    "codec": ("none", "JPEG", "LZW", "deflate", "zstd", "WebP", "JPEG 2000"),
}
ALPHA = {
    "3 + associated": "assocalpha",
    "3 + unassociated": "unassalpha",
    "3 + unspecified": "unspecified",
}
CODECS: dict[str, dict[str, Any]] = {
    "none": {},
    "JPEG": {"compression": "jpeg", "compressionargs": {"level": 95, "outcolorspace": "rgb"}},
    "LZW": {"compression": "lzw"},
    "deflate": {"compression": "deflate"},
    "zstd": {"compression": "zstd"},
    "WebP": {"compression": "webp", "compressionargs": {"lossless": True}},
    "JPEG 2000": {"compression": "jpeg2000", "compressionargs": {"reversible": True}},
}
DTYPES = {
    "8": np.uint8,
    "12 in 16": np.uint16,
    "16": np.uint16,
    "int16": np.int16,
    "float": np.float32,
}
GREY_LEVELS = 24  # by which JPEG may differ from what was written


class Kind(NamedTuple):
    """A combination."""

    layout: str
    depth: str
    samples: str
    pages: str
    orientation: str
    codec: str

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in zip(AXES, self, strict=True))


class Read(NamedTuple):
    """What became of a file."""

    outcome: str  # right, refused, wrong; or that it cannot be written
    why: str = ""


def every() -> Iterator[Kind]:
    """All combinations."""
    return (Kind(*values) for values in itertools.product(*AXES.values()))


def pairs(kind: Kind) -> set[tuple[int, str, int, str]]:
    return {(i, kind[i], j, kind[j]) for i, j in itertools.combinations(range(len(kind)), 2)}


def writable(kind: Kind) -> bool:
    """Whether the codec packs such samples."""
    return {
        "JPEG": kind.depth == "8" and (kind.pages == "channels" or kind.samples in {"1", "3"}),
        "WebP": kind.depth == "8" and kind.pages != "channels" and kind.samples.startswith("3"),
        "JPEG 2000": kind.depth != "float",
    }.get(kind.codec, True)


def covering(kinds: list[Kind], seed: int = 0) -> list[Kind]:
    """As few of the kinds as it takes, or nearly so, for each value of an axis to meet each of
    every other one that it meets among them.
    """
    kinds = [kinds[number] for number in np.random.default_rng(seed).permutation(len(kinds))]
    left = set().union(*(pairs(kind) for kind in kinds))
    found: list[Kind] = []
    while left:
        best = max(kinds[len(found) % 7 :: 7], key=lambda kind: len(pairs(kind) & left))
        best = best if pairs(best) & left else max(kinds, key=lambda kind: len(pairs(kind) & left))
        found.append(best)
        left -= pairs(best)
    return found


def chosen() -> list[Kind]:
    """The kinds that are tried with every change: all pairs, and all pairs of those that are
    read.
    """
    kinds = [kind for kind in every() if writable(kind)]
    good = [kind for kind in kinds if kind.depth == "8" and kind.samples != "5"]
    return list(dict.fromkeys([*covering(kinds), *covering(good, seed=1)]))


def stored(kind: Kind) -> np.ndarray:
    """The array of level 0 as it is written (h,w) or (h,w,s): smooth enough for JPEG, different
    everywhere.
    """
    count = int(kind.samples[0]) + (kind.samples in ALPHA)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    values = np.stack(
        [(3 * y + 2 * x + 31 * s + (y * x) // 40) % 200 + 20 for s in range(count)], axis=-1
    ).astype(np.int64)
    deep = {
        "12 in 16": values * 16,
        "16": values * 257,
        "int16": values * 40 - 3000,
        "float": values / 255,
    }.get(kind.depth, values)
    return deep.astype(DTYPES[kind.depth])


def write(path: Path, kind: Kind) -> np.ndarray:
    """Write a file of a kind; the array that it holds, (h,w,s) upright, of all channels.

    Raises:
        Exception: tifffile or the codec writes no such file.
    """
    import tifffile

    values = stored(kind)
    told: dict[str, Any] = {"tile": TILE} if kind.layout == "tiled" else {"rowsperstrip": ROWS}
    codec = (
        {"compression": "jpeg", "compressionargs": {"level": 95}}
        if kind.codec == "JPEG" and (kind.pages == "channels" or kind.samples == "1")
        else CODECS[kind.codec]
    )
    told |= {**codec, "extratags": [(274, 3, 1, int(kind.orientation), True)]}
    colour: dict[str, Any] = {
        "photometric": "rgb" if values.shape[-1] > 1 else "minisblack",
        "planarconfig": "contig" if values.shape[-1] > 1 else None,
    }
    if kind.samples in ALPHA:
        colour["extrasamples"] = [ALPHA[kind.samples]]
    whole = values if values.shape[-1] > 1 else values[..., 0]
    with tifffile.TiffWriter(path, ome=kind.pages == "OME") as file:
        if kind.pages == "channels":
            for sample in range(values.shape[-1]):
                file.write(values[..., sample], photometric="minisblack", metadata=None, **told)
        else:
            ome = {"axes": "YXS" if values.shape[-1] > 1 else "YX"} if kind.pages == "OME" else None
            file.write(whole, metadata=ome, **colour, **told)
        if kind.pages == "pyramid":
            file.write(whole[::2, ::2], metadata=None, subfiletype=1, **colour, **told)
    return upright(values, int(kind.orientation))


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """What an Orientation says, row by row of the TIFF specification: where row 0 and column 0 of
    the stored array lie.
    """
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: np.swapaxes(values, 0, 1),
        6: np.rot90(values, -1),
        7: np.swapaxes(values[::-1, ::-1], 0, 1),
        8: np.rot90(values),
    }
    return turned[orientation]


def looked_at(path: Path, kind: Kind, held: np.ndarray) -> Read:
    """What the reader of slides makes of a file, and that of images: both must agree, and be right
    or refuse.
    """
    answers = [
        _answer(lambda: _slide(path), kind, held),
        _answer(lambda: np.asarray(decode(path).image), kind, held),
    ]
    last = held.shape[-1] - 1
    picked = (last, 0, last)
    chosen = _answer(
        lambda: _slide(path, Choice(picked)), kind._replace(pages="one"), held[..., list(picked)]
    )
    wrong = [answer for answer in (*answers, chosen) if answer.outcome == "wrong"]
    if wrong:
        return wrong[0]
    if answers[0].outcome != answers[1].outcome:
        return Read("wrong", f"slides: {answers[0]}; images: {answers[1]}")
    return answers[0]


def _answer(read: Any, kind: Kind, held: np.ndarray) -> Read:
    try:
        found = read()
    except DataError as error:
        return Read("refused", str(error))
    if kind.depth != "8":
        return Read("wrong", "pixels of another depth were accepted")
    if kind.pages == "channels" and held.shape[-1] > 1 and not (held == held[..., :1]).all():
        return Read("wrong", "channels were taken for a picture")
    wanted = held[..., :3] if held.shape[-1] >= 3 else np.repeat(held[..., :1], 3, axis=-1)
    if found.shape != wanted.shape:
        return Read("wrong", f"{found.shape} in place of {wanted.shape}")
    most = int(np.abs(found.astype(int) - wanted).max())
    return (
        Read("right")
        if most <= (GREY_LEVELS if kind.codec == "JPEG" else 0)
        else Read("wrong", f"{most} grey levels apart")
    )


def _slide(path: Path, choice: Choice | None = None) -> np.ndarray:
    slide = slide_of(path, 0, 3, choice)
    assert slide is not None, "a TIFF is read by its tags"
    try:
        return slide.read(0, 0, *slide.size)
    finally:
        slide.close()


def outcome(kind: Kind, folder: Path) -> Read:
    """Write a file and read it."""
    path = folder / "a.tif"
    try:
        held = write(path, kind)
    # a codec says in many ways that it packs no such pixels
    except Exception as error:  # noqa: BLE001
        return Read("not written", f"{type(error).__name__}: {error}")
    return looked_at(path, kind, held)


def main(record: str | None = None) -> int:
    """Count all combinations, by the axes that decide."""
    counts: Counter[tuple[tuple[str, ...], str]] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in every():
            read = outcome(kind, Path(folder))
            counts[kind[:4], read.outcome] += 1
            if read.outcome == "wrong":
                wrong.append(f"{kind}: {read.why}")
    for line in wrong[:40]:
        print(line)
    names = ("right", "refused", "wrong", "not written")
    rows = [
        {
            **dict(zip(("layout", "depth", "samples", "pages"), key, strict=True)),
            **{name.replace(" ", "_"): counts[key, name] for name in names},
        }
        for key in dict.fromkeys(key for key, _ in counts)
    ]
    if record is not None:
        write_csv(Path(record), rows)
    print(
        ", ".join(
            f"{name}: {sum(count for (_, found), count in counts.items() if found == name)}"
            for name in names
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
