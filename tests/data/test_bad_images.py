"""The corpus of broken, hostile and unusual images: refused by name from the header, or read
exactly.
"""

import json
import logging
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softless.data import notices
from softless.data.dicom import ENDINGS
from softless.data.images import IMAGE_TYPES, MAX_PIXELS, BadImage, decode, verify
from softless.data.reading import read_image, read_whole
from softless.errors import DataError, UsageError
from tests.data.corpus import BAD, BOMBS, ENCODED, GOOD, ODD, encoded, honest_bomb, png, put
from tests.data.making import noise


def test_the_corpus_is_large_enough():
    assert len(BAD) >= 60
    assert len(ODD) >= 50
    assert len(set(BAD) | set(ODD) | set(GOOD)) == len(BAD) + len(ODD) + len(GOOD)


@pytest.mark.bar("B1", "a bad image file, by kind: refused with path and reason")
@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(tmp_path, name):
    bad, path = BAD[name], tmp_path / name
    bad.make(path)
    if bad.checked_only:
        assert read_image(path).size
    with pytest.raises(BadImage) as raised:
        (verify if bad.checked_only else read_image)(path)
    assert raised.value.kind == bad.kind
    assert re.search(bad.reason, raised.value.reason)
    assert str(path) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert isinstance(raised.value, DataError)
    assert raised.value.exit_code == 2


@pytest.mark.bar(
    "B6",
    "an unusual but whole image file (EXIF, palette, CMYK, alpha, several pictures): read "
    "exactly, or with what is said of it",
)
@pytest.mark.parametrize("name", ODD)
def test_unusual_files_are_read_exactly(tmp_path, name):
    (tmp_path / name).write_bytes(ODD[name].content)
    decoded = decode(tmp_path / name)
    assert decoded.image.mode == "RGB"
    assert [kind for kind, _ in decoded.remarks] == [
        kind for kind in ODD[name].remarks if kind != "wrong ending"
    ]
    if (expected := ODD[name].pixels) is not None:
        pixels = np.asarray(decoded.image).astype(int)
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).max() <= (
            2 if name.endswith(".jpg") and "exif" in name else 0
        )


@pytest.mark.parametrize("name", GOOD)
def test_good_files_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(GOOD[name])
    decoded = decode(tmp_path / name)
    assert decoded.remarks == ()
    difference = np.asarray(decoded.image).astype(int) - np.asarray(noise(24, 24))
    # noise is hard to compress
    assert np.abs(difference).mean() <= (60 if decoded.format in {"JPEG", "WEBP"} else 0)


def test_the_first_of_several_pictures_comes_with_one_notice(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(notices, "_said", set())
    (tmp_path / "pages.tif").write_bytes(ODD["pages.tif"].content)
    with caplog.at_level(logging.WARNING, "softless.data"):
        for _ in range(2):
            read_image(tmp_path / "pages.tif")
    assert caplog.messages == [
        f"{tmp_path / 'pages.tif'}: it holds 3 pictures, and only the first is read"
    ]


def test_a_damaged_later_picture_does_not_matter(tmp_path):
    content = ODD["pages.tif"].content
    (tmp_path / "cut.tif").write_bytes(content[: int(0.6 * len(content))])
    decoded = decode(tmp_path / "cut.tif")
    expected = ODD["pages.tif"].pixels
    assert expected is not None
    assert np.array_equal(np.asarray(decoded.image), expected)
    assert ("several pictures", "it holds pictures, and only the first is read") in decoded.remarks


def test_the_limits_are_settable(tmp_path, monkeypatch):
    noise(40, 30).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").size == (40, 30)
    monkeypatch.setenv("SOFTLESS_MAX_PIXELS", "1199")
    with pytest.raises(
        BadImage, match=r"40 x 30 = 1200 pixels, and at most 1199 .* set SOFTLESS_MAX_PIXELS=1200"
    ):
        read_image(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", max_pixels=1200).image.size == (40, 30)
    monkeypatch.setenv("SOFTLESS_MAX_PIXELS", "1200")
    assert read_image(tmp_path / "a.png").size == (40, 30)
    monkeypatch.setenv("SOFTLESS_MIN_SIDE", "31")
    with pytest.raises(
        BadImage,
        match=r"40 x 30 pixels, and both sides must have at least 31.*SOFTLESS_MIN_SIDE=30",
    ):
        read_image(tmp_path / "a.png")
    noise(1, 1).save(tmp_path / "one.png")
    assert decode(tmp_path / "one.png", min_side=1).image.size == (1, 1)
    for wrong in ("0", "-5", "many", "1e9", ""):
        monkeypatch.setenv("SOFTLESS_MAX_PIXELS", wrong)
        with pytest.raises(
            UsageError, match=f"SOFTLESS_MAX_PIXELS={wrong}: the limit is a whole number"
        ):
            read_image(tmp_path / "a.png")


def test_our_limit_stands_in_the_place_of_pillows(tmp_path, monkeypatch):
    """Pillow would warn above one, and refuse above two times its limit; both are silent here, and
    its limit comes back.
    """
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for ending in sorted(IMAGE_TYPES - {".pgm"} - ENDINGS):
        for size in (12, 30):
            noise(size, size).save(tmp_path / f"a{ending}")
            assert read_image(tmp_path / f"a{ending}").size == (size, size)
    with pytest.raises(BadImage, match="no such file"):
        read_image(tmp_path / "gone.png")
    assert Image.MAX_IMAGE_PIXELS == 100


def test_the_default_limit_is_documented():
    from softless.data import images

    assert f"{MAX_PIXELS:,}" in (images.__doc__ or "")


def test_an_error_can_be_raised_again_with_its_message_alone(tmp_path):
    """As torch does with what a worker raised."""
    with pytest.raises(BadImage) as raised:
        read_image(tmp_path / "gone.png")
    assert str(type(raised.value)(str(raised.value))) == str(raised.value)


MEASURE = """
import json, resource, sys, time, tracemalloc
from pathlib import Path
from softless.data.images import BadImage, decode

def peak():
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with the peak of the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

rows = {}
warm, bombs, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for path in sorted(warm.iterdir()):
    decode(path)
for path in sorted(bombs.iterdir()):
    before = peak()
    tracemalloc.start()
    start = time.process_time()
    try:
        decode(path, max_pixels=limit)
        kind = "read"
    except BadImage as error:
        kind = error.kind
    seconds = time.process_time() - start
    traced = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    rows[path.name] = kind, seconds, peak() - before, traced
print(json.dumps(rows))
"""


def measured(warm: Path, bombs: Path, limit: int) -> dict[str, tuple[str, float, float, float]]:
    """Each bomb in a fresh process: (kind, seconds, MB of the process's peak, MB of Python's) more
    than before it.
    """
    command = [sys.executable, "-c", MEASURE, str(warm), str(bombs), str(limit)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={**os.environ},
        timeout=300,
    )
    return json.loads(done.stdout)


@pytest.fixture
def warm(tmp_path):
    """A good image of every type, so that no decoder is loaded while a bomb is measured."""
    (tmp_path / "warm").mkdir()
    for name, content in GOOD.items():
        (tmp_path / "warm" / name).write_bytes(content)
    return tmp_path / "warm"


@pytest.mark.bar(
    "B9", "decompression bombs in seven formats: refused from the header in under 50 ms and 20 MB"
)
def test_bombs_cost_neither_time_nor_memory(tmp_path, warm):
    bombs = tmp_path / "bombs"
    bombs.mkdir()
    for name in (*BOMBS, "178.png", "400.png"):
        BAD[name].make(bombs / name)
    assert all(path.stat().st_size < 100_000 for path in bombs.iterdir())
    rows = measured(warm, bombs, MAX_PIXELS)
    assert len(rows) == len(BOMBS) + 2
    for name, (kind, seconds, resident, traced) in rows.items():
        assert kind == "too many pixels", name
        assert resident < 20, name
        assert traced < 20, name
        assert seconds < 0.5, name  # ten times the bar


def test_the_meter_of_bombs_sees_one_go_off(tmp_path, warm):
    bombs = tmp_path / "bombs"
    bombs.mkdir()
    honest_bomb(6_000)(bombs / "real.png")
    ((kind, _, resident, _),) = measured(warm, bombs, 10**9).values()
    assert kind == "read"
    assert resident > 36


@pytest.mark.bar(
    "B1", "flipped bytes in image files, by format: read or named, never a stray error"
)
@pytest.mark.parametrize(
    "ending", [*ENCODED, "animated.png", "animated.webp", "pages.tif", "exif6.tif", "palette.png"]
)
def test_flipped_bytes_are_read_or_named(tmp_path, ending):
    """Nothing but BadImage leaves the reader, and no warning (the environment makes them
    errors).
    """
    content = ENCODED.get(ending) or ODD[ending].content
    draw, outcomes = random.Random(0), set()
    path = tmp_path / f"flipped.{ending}"
    for _ in range(60):
        wrong = bytearray(content)
        for _ in range(draw.choice([1, 1, 4])):
            wrong[draw.randrange(draw.choice([60, len(wrong)]))] = draw.choice([
                0,
                255,
                draw.randrange(256),
            ])
        path.write_bytes(wrong)
        try:
            outcomes.add(decode(path, max_pixels=10**6).image.mode)
        except BadImage as error:
            outcomes.add(error.kind if str(path) in str(error) else "unnamed")
    assert "RGB" in outcomes
    assert outcomes - {"RGB"}
    assert "unnamed" not in outcomes


def _mutated(draw: random.Random) -> tuple[str, bytes]:
    """A name and the content of a file that was one or two images: cut, spliced, with runs zeroed,
    repeated, moved or at random.
    """
    name = draw.choice([*ENCODED, *ODD])
    content = bytearray(ENCODED[name] if name in ENCODED else ODD[name].content)
    for _ in range(draw.randrange(1, 4)):
        begin, length = draw.randrange(len(content) + 1), draw.choice([1, 4, 16, 200])
        run = content[begin : begin + length]
        content = draw.choice([
            content[:begin],
            content[:begin] + ENCODED[draw.choice([*ENCODED])][begin:],
            content[:begin] + bytes(len(run)) + content[begin + length :],
            content[:begin] + run * draw.choice([2, 50]) + content[begin + length :],
            content[:begin] + content[begin + length :] + run,
            content[:begin] + draw.randbytes(len(run)) + content[begin + length :],
        ])
    return f"mutated.{draw.choice([name, 'png', 'jpg', 'tif'])}", bytes(content)


def _strays(folder: Path, seed: int, number: int) -> list[str]:
    """What left the reader beside an image or a BadImage that names the file."""
    draw, found = random.Random(seed), []
    for index in range(number):
        name, content = _mutated(draw)
        path = folder / name
        path.write_bytes(content)
        try:
            read_whole(path, draw.choice([1, 3]), max_pixels=10**6)
        except BadImage as error:
            found += [] if str(path) in str(error) and error.kind else [f"{index}: {error}"]
        except Exception as error:  # noqa: BLE001 - what a person would see as a traceback
            found.append(f"{index} of seed {seed}, {name}: {error!r}")
    return found


@pytest.mark.bar("B1", "mutated image files: read or named, never a stray error")
def test_mutated_images_are_read_or_named(tmp_path):
    assert not _strays(tmp_path, 0, 60)


@pytest.mark.soak
@pytest.mark.bar("B1", "600 mutated image files: read or named, never a stray error")
@pytest.mark.parametrize("seed", range(1, 7))
def test_many_mutated_images_are_read_or_named(tmp_path, seed):
    assert not _strays(tmp_path, seed, 100)


@pytest.mark.parametrize(
    ("ending", "options", "seen"),
    [
        ("png", {}, True),
        ("tif", {"compression": "tiff_adobe_deflate"}, True),
        ("tif", {"compression": "tiff_lzw"}, False),
        ("tif", {"compression": "packbits"}, False),
        ("tif", {}, False),
        ("jpg", {}, False),
        ("webp", {"lossless": True}, False),
        ("bmp", {}, False),
        ("ppm", {}, False),
    ],
)
def test_what_a_format_can_tell_of_its_pixels(tmp_path, ending, options, seen):
    """One flipped bit in the middle of the pixels: seen where the format has a checksum, and said
    where it has none.
    """
    path = tmp_path / f"a.{ending}"
    noise(64, 64).save(path, **options)
    assert (read_whole(path).unguarded == "") == seen
    if not seen:
        return
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) // 3 + 40):
        wrong = bytearray(content)
        wrong[place] ^= 16
        path.write_bytes(wrong)
        with pytest.raises(BadImage):
            read_whole(path)


def test_a_lying_header_below_the_limit_is_a_truncated_file(tmp_path):
    put(png(900, 900, 8, 2, b"\0" * 300))(tmp_path / "lie.png")
    with pytest.raises(BadImage, match="truncated"):
        read_image(tmp_path / "lie.png")


def test_readers_in_threads_do_not_disturb_each_other(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    paths = []
    for index in range(40):
        content = ODD["pages.tif"].content if index % 2 else encoded(noise(seed=index), "PNG")
        paths.append(tmp_path / f"{index}.png")
        paths[-1].write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with ThreadPoolExecutor(8) as pool:
        remarks = list(pool.map(lambda path: len(decode(path).remarks), paths))
    assert remarks == [0, 1] * 20
    assert Image.MAX_IMAGE_PIXELS == 100
