"""DICOM: the pixels of pydicom's own functions, on the small files that it brings and on made ones
of every kind; what cannot be read is named.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    convert_color_space,
    pixel_array,
)
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RTPlanStorage,
    generate_uid,
)

from softless import errors
from softless.data import open_splits
from softless.data.dicom import is_dicom
from softless.data.folder import listing
from softless.data.images import BadImage
from softless.data.pictures import unit
from softless.data.reading import decode, read_image
from softless.errors import DataError, MissingExtra, UsageError
from softless.experiment.groups import DataSpec
from softless.experiment.ranges import Range
from softless.tasks.check import Reading, check
from softless.tasks.segmentation.values import read_values
from tests.experiment.test_ranges import NEAR, drawn, formula

BROUGHT = sorted((Path(pydicom.__file__).parent / "data/test_files").glob("*.dcm"))
GREY = ("MONOCHROME1", "MONOCHROME2")


# --- what pydicom says
# ------------------------------------------------------------------------------------------------


def rescaled(header: Dataset, page: int = 0) -> np.ndarray:
    """Grey numbers (h, w) after the modality LUT."""
    return apply_modality_lut(header_array(header, page), header)


def header_array(header: Dataset, page: int) -> np.ndarray:
    return pixel_array(header, index=page, raw=True)


def ends(header: Dataset) -> tuple[float, float]:
    """The output of a window for the lowest and the highest number, PS3.3 C.11.2.1.2 as pydicom has
    it.
    """
    bits = int(header.BitsStored)
    if header.get("VOILUTSequence"):
        return 0, 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
    if header.get("ModalityLUTSequence"):
        low, high = 0.0, 2.0 ** int(header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    else:
        low, high = (
            (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
            if header.PixelRepresentation
            else (0.0, 2.0**bits - 1)
        )
    slope, intercept = (
        float(header.get("RescaleSlope", 1)),
        float(header.get("RescaleIntercept", 0)),
    )
    return low * slope + intercept, high * slope + intercept


def displayed(header: Dataset, page: int = 0) -> np.ndarray:
    """Grey in 0..1 by pydicom's window or VOI LUT."""
    low, high = ends(header)
    values = rescaled(header, page)
    values = values.astype(int) if header.get("VOILUTSequence") else values
    shown = (apply_voi_lut(values, header) - low) / (high - low)
    return 1 - shown if header.PhotometricInterpretation == "MONOCHROME1" else shown


def colours(header: Dataset, page: int = 0) -> np.ndarray:
    """(h, w, 3) as pydicom gives them."""
    raw, kind = header_array(header, page), str(header.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        return apply_color_lut(raw, header)
    return convert_color_space(raw, kind, "RGB") if kind.startswith("YBR_FULL") else raw


def has_window(header: Dataset) -> bool:
    return bool(header.get("VOILUTSequence")) or None not in [
        header.get("WindowCenter"),
        header.get("WindowWidth"),
    ]


def judged(path: Path) -> str:
    """right, or refused with the kind; a wrong pixel fails here."""
    try:
        found = decode(path, 3)
    except BadImage as error:
        return f"refused: {error.kind}{', in lines' if len(str(error).splitlines()) > 1 else ''}"
    header = dcmread(path)
    pixels = np.asarray(found.image)
    if header.PhotometricInterpretation in GREY:
        values = rescaled(header)
        wanted = (
            displayed(header) if has_window(header) else values / (2 ** int(header.BitsStored) - 1)
        )
        assert np.array_equal(
            pixels, np.rint(255 * wanted).astype(np.uint8)[..., None].repeat(3, -1)
        )
        return "right"
    wanted = colours(header)
    assert np.array_equal(
        pixels, np.rint(wanted / (np.iinfo(wanted.dtype).max / 255)).astype(np.uint8)
    )
    return "right"


def judged_in_range(path: Path) -> str:
    """The same with a declared range, which is of the rescaled values."""
    try:
        header = dcmread(path)
        grey = header.get("PhotometricInterpretation") in GREY
        values = rescaled(header) if grey else colours(header)
    except Exception:  # noqa: BLE001 - whatever pydicom raises; ours must name it
        with pytest.raises(BadImage):
            decode(path, 3, Range.parse("0..1"))
        return "refused"
    low, high = (float(np.quantile(values, share)) for share in (0.1, 0.9))
    scale = Range.parse(f"{low}..{high if high > low else low + 1}")
    wanted = formula(values, scale.low, scale.high)
    wanted = 1 - wanted if header.PhotometricInterpretation == "MONOCHROME1" else wanted
    wanted = wanted[..., None].repeat(3, -1) if grey else wanted
    found = decode(path, 3, scale)
    assert found.image.dtype == np.float32
    assert np.abs(found.image - wanted).max() <= NEAR
    return "right"


@pytest.mark.filterwarnings("ignore")
def test_the_files_that_pydicom_brings():
    """Every one is right, or refused by name in one line; none raises anything else."""
    said = {path.name: judged(path) for path in BROUGHT}
    counts = Counter(said.values())
    assert counts["right"] >= 30, said
    assert set(counts) <= {
        "right",
        "refused: no image",
        "refused: pixel format",
        "refused: damaged",
        "refused: too small",
    }
    ranged = Counter(
        judged_in_range(path)
        for path in BROUGHT
        if said[path.name] in {"right", "refused: pixel format"}
    )
    assert ranged["right"] >= counts["right"]


# --- made ones
# ----------------------------------------------------------------------------------------------


def made(
    path: Path,
    values: np.ndarray,
    photometric: str = "MONOCHROME2",
    bits: int | None = None,
    **more: Any,
) -> Path:
    """A file of values (h, w), (h, w, 3) or with `NumberOfFrames` (n, h, w)."""
    frames = int(more.get("NumberOfFrames", 1))
    height, width = values.shape[1:3] if frames > 1 else values.shape[:2]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Rows, ds.Columns, ds.PhotometricInterpretation = height, width, photometric
    ds.SamplesPerPixel = 3 if values.ndim == 3 and frames == 1 else 1
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = more.pop("planar", 0)
        values = values.transpose(2, 0, 1) if ds.PlanarConfiguration else values
    ds.BitsAllocated = 8 * values.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    ds.PixelData = values.tobytes()
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for name, value in more.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def lut(low: int, high: int, bits: int) -> Sequence:
    """A table that bends the values between, with entries of so many bits."""
    item = Dataset()
    table = np.rint(np.linspace(0, 1, high - low + 1) ** 2 * (2**bits - 1)).astype(int)
    item.LUTDescriptor = [len(table), low, bits]
    item.LUTData = table.tolist()
    item["LUTDescriptor"].VR = "SS" if low < 0 else "US"
    item["LUTData"].VR = "US"
    return Sequence([item])


def window(centre: float, width: float, function: str = "LINEAR") -> dict[str, Any]:
    return {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}


# name -> (kind of number, bits stored, lowest and highest)
NUMBERS: dict[str, tuple[Any, int, int, int]] = {
    "8 bits": (np.uint8, 8, 0, 255),
    "12 in 16": (np.uint16, 12, 0, 4095),
    "16 bits": (np.uint16, 16, 0, 65535),
    "signed": (np.int16, 16, -2000, 3000),
    "12 signed": (np.int16, 12, -2048, 2047),
}
MEANINGS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "nothing": lambda *_: {},
    "a window": lambda low, high: window((low + high) / 2, (high - low) / 3),
    "an exact window": lambda low, high: window((low + high) / 2, (high - low) / 3, "LINEAR_EXACT"),
    "a sigmoid": lambda low, high: window((low + high) / 2, (high - low) / 3, "SIGMOID"),
    "two windows": lambda low, high: {
        "WindowCenter": [(low + high) / 2, 0],
        "WindowWidth": [(high - low) / 2, 10],
    },
    "a VOI LUT": lambda low, high: {"VOILUTSequence": lut(low, min(high, low + 30000), 12)},
    "a rescale": lambda *_: {"RescaleSlope": 0.5, "RescaleIntercept": -100},
    "a rescale and a window": lambda low, high: {
        "RescaleSlope": 2,
        "RescaleIntercept": -1024,
        **window(low + high - 1024, (high - low) / 2),
    },
    "a falling rescale and a window": lambda low, high: {
        "RescaleSlope": -1,
        "RescaleIntercept": 10,
        **window(10 - (low + high) / 2, (high - low) / 2),
    },
    "a modality LUT and a window": lambda low, high: {
        "ModalityLUTSequence": lut(low, min(high, low + 30000), 16),
        **window(20000, 30000),
    },
}


@pytest.mark.parametrize(
    ("photometric", "numbers", "meaning"), [*itertools.product(GREY, NUMBERS, MEANINGS)]
)
def test_grey_of_every_kind(tmp_path: Path, photometric: str, numbers: str, meaning: str):
    kind, bits, low, high = NUMBERS[numbers]
    path = made(
        tmp_path / "a.dcm",
        drawn(low, high, 0, kind),
        photometric,
        bits,
        **MEANINGS[meaning](low, high),
    )
    header = dcmread(path)
    values = rescaled(header)
    flip = photometric == "MONOCHROME1"
    low, high = (float(round(np.quantile(values, share))) for share in (0.2, 0.7))
    scale = Range.parse(f"{low}..{high}")
    found = decode(path, 1, scale)
    wanted = formula(values, low, high)
    assert np.abs(found.image[..., 0] - (1 - wanted if flip else wanted)).max() <= NEAR
    assert found.outside == (int((values < low).sum()), int((values > high).sum()))
    if meaning == "nothing" and numbers == "8 bits":
        stored = header_array(header, 0)
        assert np.array_equal(read_image(path, 1), 255 - stored if flip else stored)
    elif meaning in {"nothing", "a rescale"}:
        with pytest.raises(
            BadImage, match=r"no window that says which are shown: declare .* --set data\.range="
        ):
            read_image(path)
    else:
        shown = np.rint(255 * displayed(header)).astype(np.uint8)
        assert np.array_equal(read_image(path, 1), shown)
        assert len(np.unique(shown)) > 20, "or the test says little"


def palette(bits: int) -> dict[str, Any]:
    table = (
        np.random
        .default_rng(1)
        .integers(0, 2**bits, (3, 256))
        .astype(np.uint16 if bits == 16 else np.uint8)
    )
    entries: dict[str, Any] = {}
    for name, row in zip(("Red", "Green", "Blue"), table, strict=True):
        entries[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        entries[f"{name}PaletteColorLookupTableData"] = row.tobytes()
    return entries


COLOURS: dict[str, tuple[str, Callable[[], np.ndarray], dict[str, Any]]] = {
    "RGB": ("RGB", lambda: drawn(0, 255, 0, np.uint8, 3), {}),
    "RGB in planes": ("RGB", lambda: drawn(0, 255, 0, np.uint8, 3), {"planar": 1}),
    "YBR_FULL": ("YBR_FULL", lambda: drawn(0, 255, 0, np.uint8, 3), {}),
    "a palette of 8 bits": ("PALETTE COLOR", lambda: drawn(0, 255, 0, np.uint8), palette(8)),
    "a palette of 16 bits": ("PALETTE COLOR", lambda: drawn(0, 255, 0, np.uint8), palette(16)),
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours_of_every_kind(tmp_path: Path, name: str):
    photometric, values, more = COLOURS[name]
    path = made(tmp_path / "a.dcm", values(), photometric, **more)
    wanted = colours(dcmread(path))
    most = np.iinfo(wanted.dtype).max
    assert np.array_equal(read_image(path, 3), np.rint(wanted / most * 255).astype(np.uint8))
    high = round(0.8 * most)
    assert (
        np.abs(read_image(path, 3, Range.parse(f"10..{high}")) - formula(wanted, 10, high)).max()
        <= NEAR
    )
    grey = unit(read_image(path, 1))
    assert np.abs(grey - (wanted / most) @ [0.299, 0.587, 0.114]).max() <= 0.51 / 255


def test_elements_without_a_value_say_nothing(tmp_path: Path):
    stored = drawn(0, 255, 0, np.uint8)
    empty: dict[str, Any] = dict.fromkeys((
        "RescaleSlope",
        "RescaleIntercept",
        "WindowCenter",
        "WindowWidth",
    ))
    assert np.array_equal(read_image(made(tmp_path / "a.dcm", stored, **empty), 1), stored)


def test_frames_by_page(tmp_path: Path):
    values = np.stack([drawn(0, 255, seed, np.uint8) for seed in range(3)])
    path = made(tmp_path / "a.dcm", values, NumberOfFrames=3)
    found = decode(path, 1)
    assert np.array_equal(found.image, values[0])
    assert [remark.kind for remark in found.remarks] == ["several pictures"]
    assert "3 pictures, and only number 0 is read" in found.remarks[0].text
    for page in range(3):
        assert np.array_equal(read_image(path, 1, page=page), values[page])
    with pytest.raises(UsageError, match=r"page=3: .* holds 3 pictures"):
        read_image(path, page=3)


def test_frames_with_a_rescale_and_a_window_of_their_own(tmp_path: Path):
    """Enhanced CT and MR: the functional groups say them, for all frames and for each."""
    values = np.stack([drawn(0, 4095, seed, np.uint16) for seed in range(2)])

    def group(name: str, **entries: Any) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for key, value in entries.items():
            setattr(inner, key, value)
        setattr(outer, name, Sequence([inner]))
        return outer

    rescale = group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=-1000)
    windows = [
        group("FrameVOILUTSequence", WindowCenter=centre, WindowWidth=2000)
        for centre in (1000, 4000)
    ]
    path = made(
        tmp_path / "a.dcm",
        values,
        bits=12,
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=Sequence([rescale]),
        PerFrameFunctionalGroupsSequence=Sequence(windows),
    )
    for page, centre in enumerate((1000, 4000)):
        meant = 2.0 * values[page] - 1000
        shown = formula(meant, centre - 0.5 - 1999 / 2, centre - 0.5 + 1999 / 2)
        assert np.array_equal(read_image(path, 1, page=page), np.rint(255 * shown).astype(np.uint8))
        exact = formula(meant, -1000, 3000)
        assert (
            np.abs(read_image(path, 1, Range.parse("-1000..3000"), page=page)[..., 0] - exact).max()
            <= NEAR
        )


def packed(path: Path) -> None:
    made(path, drawn(0, 255, 0, np.uint8))
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    ds.save_as(path)


def no_picture(path: Path) -> None:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = RTPlanStorage, generate_uid()
    ds.save_as(path, enforce_file_format=True)


def nothing_but(path: Path, keep: int) -> None:
    made(path, drawn(0, 255, 0, np.uint8))
    path.write_bytes(path.read_bytes()[:keep])


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a packing that nothing unpacks": (
        packed,
        (
            r"packed as JPEG-LS Lossless Image Compression, and nothing installed unpacks that: "
            r"install .*pyjpegls"
        ),
    ),
    "no picture": (no_picture, r"it is DICOM and holds no picture \(RT Plan Storage\)"),
    "no preamble": (lambda path: path.write_bytes(bytes(300)), "has no DICOM preamble"),
    "empty": (lambda path: path.write_bytes(b""), "0 bytes"),
    "cut in the pixels": (lambda path: nothing_but(path, -100), "cannot read the image"),
    "cut in the header": (lambda path: nothing_but(path, 200), "cannot read the image"),
    "too small": (lambda path: made(path, np.zeros((4, 4), np.uint8)), "4 x 4 pixels"),
    "8-bit colours under a wider range": (
        lambda path: made(path, drawn(0, 255, 0, np.uint8, 3), "RGB"),
        "8-bit pixels",
    ),
    "colours of another kind": (
        lambda path: made(path, drawn(0, 255, 0, np.uint8, 3), "YBR_PARTIAL_420"),
        "its photometric interpretation is YBR_PARTIAL_420; read are MONOCHROME1",
    ),
    "colours of one sample": (
        lambda path: made(path, drawn(0, 255, 0, np.uint8), "RGB"),
        "cannot read the image",
    ),
    "16-bit colours": (
        lambda path: made(path, drawn(0, 65535, 0, np.uint16, 3), "RGB"),
        r"colours of 16 bits: declare",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_name(tmp_path: Path, name: str):
    spoil, said = REFUSED[name]
    path = tmp_path / "a.dcm"
    spoil(path)
    scale = Range.parse("0..4095") if "range" in name else None
    with pytest.raises(BadImage, match=said) as raised:
        decode(path, 3, scale)
    assert "\n" not in str(raised.value)


def test_a_deflated_file_is_read_and_one_that_fills_the_memory_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made(tmp_path / "plain.dcm", drawn(0, 255, 0, np.uint8))
    ds = dcmread(tmp_path / "plain.dcm")
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path / "deflated.dcm")
    assert np.array_equal(read_image(tmp_path / "deflated.dcm", 1), drawn(0, 255, 0, np.uint8))
    ds.add_new(0x00091010, "UN", bytes(10_000_000))
    ds.add_new(0x00090010, "LO", "OURS")
    ds.save_as(tmp_path / "bomb.dcm")
    assert (tmp_path / "bomb.dcm").stat().st_size < 100_000
    monkeypatch.setenv("SOFTLESS_MAX_PIXELS", "1000000")
    with pytest.raises(BadImage, match="deflated, it holds more than 4000000 bytes"):
        decode(tmp_path / "bomb.dcm")


def test_files_without_an_ending_are_known_by_how_they_begin(tmp_path: Path):
    for name in ("IM000001", "1.2.840.113619.2", "a.DCM", "b.dicom"):
        made(tmp_path / name, drawn(0, 255, 0, np.uint8))
    made(tmp_path / "DICOMDIR", drawn(0, 255, 0, np.uint8))
    (tmp_path / "notes").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    found = listing(tmp_path)
    assert found.files == sorted(["IM000001", "1.2.840.113619.2", "a.DCM", "b.dicom"])
    assert found.passed_over.total() == 3
    assert not is_dicom(tmp_path / "notes")


def test_a_folder_of_dicom_through_training_and_check(tmp_path: Path):
    """CT slices with a window of their own, and with a declared one, which stands before it."""
    for seed in range(12):
        folder = tmp_path / "ab"[seed % 2]
        folder.mkdir(exist_ok=True)
        ct: dict[str, Any] = {
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            "WindowCenter": 40,
            "WindowWidth": 400,
        }
        made(folder / f"IM{seed:03d}", drawn(0, 2000, seed, np.int16), bits=16, **ct)
    scales: tuple[str | None, ...] = (None, "window=1500,level=-600")
    for text in scales:
        data = DataSpec("folder", str(tmp_path), in_chans=1, range=text, val_fraction=0.3)
        splits = open_splits(data, 0)
        assert len(splits.train) + len(splits.val) == 12
        header = dcmread(tmp_path / splits.train.name(0))
        picture = splits.train.image(0)
        if text is None:
            assert np.array_equal(picture, np.rint(255 * displayed(header)).astype(np.uint8))
        else:
            assert np.abs(picture[..., 0] - formula(rescaled(header), -1350, 150)).max() <= NEAR
        report = check(tmp_path, reading=Reading("folder", range=text))
        assert (report.exit_code, report.seen, report.good) == (0, 12, 12)
        assert report.unguarded == {"DICOM": 12}
    no_picture(tmp_path / "a/IM999.dcm")
    with pytest.raises(DataError, match=r"a/IM999\.dcm: it is DICOM and holds no picture"):
        open_splits(DataSpec("folder", str(tmp_path), in_chans=1), 0)
    assert check(tmp_path, reading=Reading("folder")).by_reason == {"no image": 1}


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made(tmp_path / "a.dcm", drawn(0, 255, 0, np.uint8))
    monkeypatch.setattr(errors, "_installed", lambda module: module != "pydicom")
    with pytest.raises(
        MissingExtra, match=r"this needs pydicom, which is not installed: pip install .*\[dicom\]"
    ):
        read_image(tmp_path / "a.dcm")


def test_a_dicom_file_is_no_label_image(tmp_path: Path):
    made(tmp_path / "a.dcm", drawn(0, 1, 0, np.uint8))
    with pytest.raises(
        BadImage, match="holds a DICOM image, and the value of a label image's pixel is its class"
    ):
        read_values(tmp_path / "a.dcm")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes of the header exchanged, a bit turned over, some left out, or the end cut off."""
    held = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(min(len(held), 2000))
        kind = rng.random()
        if kind < 0.6:
            held[place] = rng.randrange(256)
        elif kind < 0.8:
            held[place] ^= 1 << rng.randrange(8)
        elif kind < 0.9:
            del held[place : place + rng.randrange(1, 9)]
        else:
            del held[max(1, rng.randrange(len(held))) :]
    return bytes(held)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [200, pytest.param(20000, marks=pytest.mark.soak)])
def test_mutated_files_are_read_or_named_in_one_line(tmp_path: Path, count: int):
    """None raises anything else, with a declared range or without."""
    sources = [path.read_bytes() for path in BROUGHT if path.stat().st_size < 200_000]
    for name, (kind, bits, low, high) in NUMBERS.items():
        for meaning in MEANINGS.values():
            path = made(
                tmp_path / f"{name}.dcm",
                drawn(low, high, 0, kind),
                "MONOCHROME1",
                bits,
                **meaning(low, high),
            )
            sources.append(path.read_bytes())
    rng, outcomes = random.Random(0), Counter[str]()
    for _ in range(count):
        (tmp_path / "a.dcm").write_bytes(mutated(rng.choice(sources), rng))
        for scale in (None, Range.parse("0..255")):
            try:
                decode(tmp_path / "a.dcm", 3, scale)
                outcomes["read"] += 1
            except BadImage as error:
                outcomes["refused" if len(str(error).splitlines()) == 1 else "in lines"] += 1
    assert set(outcomes) == {"read", "refused"}
