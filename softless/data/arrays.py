"""Images that come as arrays: scikit-learn's handwritten digits, and npz files with MedMNIST's
keys.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from softless.data.findings import Fault
from softless.data.notices import notice
from softless.data.samples import ArraySamples
from softless.errors import DataError, Faults, located, need
from softless.experiment.ranges import WAY, Outside, Range
from softless.words import POINTED, POINTER

DIGITS_TEST_FRACTION = 0.2
DIGITS_SPLIT_SEED = 0

# MemoryError: a header that claims more than there is
NOT_AN_NPZ = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    MemoryError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)

_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
# MedMNIST's info.py; the files themselves hold numbers only
MEDMNIST_CLASSES: dict[str, tuple[str, ...]] = {
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocytes",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "breastmnist": ("malignant", "normal or benign"),
    # labels that may come together
    "chestmnist": (
        "atelectasis",
        "cardiomegaly",
        "effusion",
        "infiltration",
        "mass",
        "nodule",
        "pneumonia",
        "pneumothorax",
        "consolidation",
        "edema",
        "emphysema",
        "fibrosis",
        "pleural",
        "hernia",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesions",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),  # grades of retinopathy
    "tissuemnist": (
        "collecting duct, connecting tubule",
        "distal convoluted tubule",
        "glomerular endothelial cells",
        "interstitial endothelial cells",
        "leukocytes",
        "podocytes",
        "proximal tubule segments",
        "thick ascending limb",
    ),
}


def digits_parts(channels: int) -> tuple[dict[str, ArraySamples], tuple[str, ...]]:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 grey, cut into 1,437 to train on and 360
    to test.

    The cut is `train_test_split(range(1797), test_size=0.2, stratify=target, random_state=0)`
    whatever the seed of a run, so anyone can make the same test split. Grey levels 0..16 become
    0..255.
    """
    need("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    every = ArraySamples(images, digits.target, channels)
    train, test = train_test_split(
        np.arange(len(images)),
        test_size=DIGITS_TEST_FRACTION,
        stratify=digits.target,
        random_state=DIGITS_SPLIT_SEED,
    )
    return {"train": every.take(train), "test": every.take(test)}, tuple(
        str(d) for d in digits.target_names
    )


def npz_parts(
    path: str | Path, channels: int, scale: Range | None = None
) -> tuple[dict[str, ArraySamples], tuple[str, ...]]:
    """The splits of an npz file with MedMNIST's keys: `{train,val,test}_images` and `_labels`; val
    and test optional.

    Images are uint8 (n, H, W) or (n, H, W, C), or of any kind of number with a declared range,
    labels (n,) or (n, 1) whole numbers from 0, or several
    labels an image, (n, K) of 0 and 1. A file with one of MedMNIST's names gets that set's class
    names, any other the numbers. `path` may be a folder with one npz file.
    Images whose label is no class, or that hold NaN or infinity, are in `unusable` of their part.

    Raises:
        DataError: no such file, keys missing, other types or shapes (what is wrong with all parts
            in one error), or a class of the training labels
            without images.
    """
    file = npz_file(path)
    arrays = _read_npz(file)
    if not _given(arrays, "train"):
        raise DataError(
            f"{file} has no train_images and train_labels; it holds "
            f"{', '.join(sorted(arrays)) or 'nothing'}"
        )
    if channels == 1 and "train_images" in arrays and arrays["train_images"].shape[3:] == (3,):
        notice(
            f"{file}: the images are in colour, and data.in_chans=1 makes them grey; "
            "data.in_chans=3 keeps it"
        )
    parts: dict[str, ArraySamples] = {}
    wrong = []
    for part in ("train", "val", "test"):
        if _given(arrays, part):
            try:
                parts[part] = _part(file, arrays, part, channels, scale)
            except DataError as error:
                wrong.append(str(error))
    if wrong:
        raise (
            Faults(
                f"{file} cannot be used:",
                [f"  {message.removeprefix(f'{file}: ')}" for message in wrong],
            )
            if len(wrong) > 1
            else DataError(wrong[0])
        )
    count = (
        _count_labels(file, parts)
        if parts["train"].targets.ndim == 2
        else _count_classes(file, parts)
    )
    named = MEDMNIST_CLASSES.get(file.stem.lower().partition("_")[0], ())
    return parts, named if len(named) == count else tuple(str(i) for i in range(count))


def unlabelled_npz(path: Path, channels: int, scale: Range | None = None) -> ArraySamples:
    """All images of an npz file: those of its keys `{train,val,test}_images`, called `test/0`, or
    of its one array `images`, called `0`.

    Labels are not read. Images that hold NaN or infinity are left out, and named in `left_out`.

    Raises:
        DataError: no such file, no such keys, no images, or none that can be used.
    """
    file = npz_file(path)
    arrays = _read_npz(file)
    keys = [
        key
        for key in (*(f"{part}_images" for part in ("train", "val", "test")), "images")
        if key in arrays
    ]
    if not keys:
        raise DataError(
            f"{file} has no train_images, val_images, test_images or images; it holds "
            f"{', '.join(sorted(arrays)) or 'nothing'}"
        )
    names: list[str] = []
    wrong: dict[int, Fault] = {}
    for key in keys:
        refuse_images(file, key, arrays[key], scale)
        if arrays[key].shape[1:] != arrays[keys[0]].shape[1:]:
            raise DataError(
                f"{file}: {key} and {keys[0]} hold images of other shapes: give a file for each"
            )
        part = key.removesuffix("_images") if key != "images" else ""
        faults = not_finite(arrays[key], part)
        wrong |= {len(names) + index: fault for index, fault in faults.items()}
        names += [f"{part}/{index}" if part else str(index) for index in range(len(arrays[key]))]
    if len(wrong) == len(names):
        raise DataError(f"{file}: {wrong[0]}; none of the {len(names)} images can be used")
    every = ArraySamples(
        np.concatenate([arrays[key] for key in keys]), np.zeros(len(names)), channels, names, scale
    )
    usable = (
        every.take([index for index in range(len(names)) if index not in wrong]) if wrong else every
    )
    usable.left_out = tuple(wrong.values())
    return usable


def refuse_images(file: Path, key: str, images: np.ndarray, scale: Range | None) -> None:
    """Refuse an array that holds no images: read are (n, H, W) and (n, H, W, C), n > 0.

    Raises:
        DataError: its numbers, its shape, or volumes.
    """
    if why := no_numbers(images, scale):
        raise DataError(f"{file}: {key} {why}")
    if images.ndim not in {3, 4} or not images.size:
        raise DataError(
            f"{file}: {key} have shape {images.shape}; expected (n, H, W) or (n, H, W, C), n > 0"
        )
    if why := no_images(images):
        raise DataError(f"{file}: {key} {why}")


def no_images(images: np.ndarray) -> str:
    """What is said of volumes, (n, D, D, D) as in MedMNIST's 3-D sets: taken for images, their
    depth would be channels. Nothing is said of images (n, H, W) or (n, H, W, C).
    """
    cubes = images.ndim == 4 and images.shape[1] == images.shape[2] == images.shape[3]
    return (
        f"are volumes of {' x '.join(map(str, images.shape[1:]))}, and images are read: give "
        "slices of them as images"
        if cubes
        else ""
    )


def stored_channels(path: str | Path) -> int | None:
    """How many channels the training images of an npz file have, from its header; None where it
    cannot be said.
    """
    shape = _stored_shape(path, "train_images") or ()
    return {3: 1, 4: shape[-1] if shape else None}.get(len(shape))


def stored_labels(path: str | Path) -> int:
    """How many labels each training image of an npz file has, from its header; 1 where it cannot
    be said.
    """
    shape = _stored_shape(path, "train_labels")
    return shape[1] if shape is not None and len(shape) == 2 else 1


def _stored_shape(path: str | Path, key: str) -> tuple[int, ...] | None:
    """The shape of an array of an npz file, from its header; None where it cannot be said."""
    try:
        with zipfile.ZipFile(npz_file(path)) as archive, archive.open(f"{key}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape: tuple[int, ...] = read(member)[0]
    except (*NOT_AN_NPZ, DataError, KeyError):  # opening it says what is wrong
        return None
    return shape


def npz_file(path: str | Path) -> Path:
    """The file, or the one in the folder.

    Raises:
        DataError: there is none, or several.
    """
    file = located(path)
    if not file.exists():
        raise DataError(f"no npz file at {file}")
    if file.is_dir():
        files = sorted(file.glob("*.npz"))
        if len(files) != 1:
            listed = ", ".join(f.name for f in files[:10]) or "none"
            raise DataError(
                f"{file} must hold exactly one npz file, and it holds {listed}: name the file "
                "itself"
            )
        return files[0]
    return file


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        # numpy 2.4 leaves the file open when it is no whole archive, so it is opened here
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except NOT_AN_NPZ as error:
        raise DataError(
            f"cannot read {file} as an npz file of plain arrays: {why_no_npz(file, error)}"
        ) from error


def why_no_npz(file: Path, error: Exception) -> str:
    """What is wrong with a file that numpy does not read."""
    try:
        with file.open("rb") as handle:
            return f"it is {POINTED}" if handle.read(len(POINTER)) == POINTER else str(error)
    except OSError:
        return str(error)


def _given(arrays: dict[str, np.ndarray], part: str) -> bool:
    return f"{part}_images" in arrays or f"{part}_labels" in arrays


def _part(
    file: Path, arrays: dict[str, np.ndarray], part: str, channels: int, scale: Range | None
) -> ArraySamples:
    missing = [key for key in (f"{part}_images", f"{part}_labels") if key not in arrays]
    if missing:
        raise DataError(f"{file} lacks {missing[0]}: images and labels come in pairs")
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    refuse_images(file, f"{part}_images", images, scale)
    several = labels.ndim == 2 and labels.shape[1] > 1
    labels = labels if several else labels.reshape(-1)
    if len(labels) != len(images):
        raise DataError(
            f"{file}: {len(images)} {part}_images and {len(labels)} {part}_labels: the counts "
            "must agree"
        )
    if labels.dtype.kind not in ("biuf" if several else "biu"):
        raise DataError(
            f"{file}: {part}_labels must be whole numbers from 0, and they are {labels.dtype}"
        )
    names = [f"{part}/{i}" for i in range(len(images))]
    wrong = no_labels(labels, part) if several else no_classes(labels, part)
    samples = ArraySamples(
        images, np.where(labels == 1, 1, 0) if several else labels, channels, names, scale
    )
    samples.unusable = {**not_finite(images, part), **wrong}
    return samples


def no_numbers(images: np.ndarray, scale: Range | None) -> str:
    """What is said of images (n, H, W) or (n, H, W, C) whose values cannot be used; nothing where
    they can.
    """
    if scale is None:
        return (
            ""
            if images.dtype == np.uint8
            else f"are {images.dtype}, and only uint8 pixels are read without a range: {WAY}"
        )
    if images.dtype.kind not in "biuf":
        return f"are {images.dtype}, which are no numbers of pixels"
    if images.dtype == np.uint8 and scale.beyond_bytes:
        return (
            f"are uint8, which lie in 0..255, and {scale} reaches beyond: declare the range "
            "that they have"
        )
    return ""


def not_finite(images: np.ndarray, part: str) -> dict[int, Fault]:
    """The images that hold NaN or infinity, by index into `images` (n, H, W) or (n, H, W, C)."""
    if images.dtype.kind != "f":
        return {}
    wrong = [int((~np.isfinite(image)).sum()) for image in images]
    return {
        index: Fault(f"{part}/{index}", f"{count} of its values are NaN or infinite", "not finite")
        for index, count in enumerate(wrong)
        if count
    }


def say_outside(images: np.ndarray, part: str, scale: Range | None) -> str:
    """What is said of values outside the declared range; nothing where none is.

    `images` are (n, H, W) or (n, H, W, C), in stored numbers.
    """
    if scale is None:
        return ""
    counts = Outside()
    for image in images:
        counts.add(scale.outside(image))
    return counts.sentence(part, scale)


def no_classes(labels: np.ndarray, part: str) -> dict[int, Fault]:
    """The labels (n,) that name no class, by place: those below 0, as some sets mark images that
    nobody labelled.
    """
    return {
        index: Fault(
            f"{part}/{index}",
            f"its label is {labels[index]}, and labels are whole numbers from 0",
            "labels",
        )
        for index in np.flatnonzero(labels < 0).tolist()
    }


def no_labels(labels: np.ndarray, part: str) -> dict[int, Fault]:
    """The rows of several labels (n, K) that hold something else than 0 and 1, by place."""
    return {
        index: Fault(
            f"{part}/{index}",
            f"one of its labels is {_other(labels[index]):g}, and each of several labels is 0 or 1",
            "labels",
        )
        for index in np.flatnonzero(((labels != 0) & (labels != 1)).any(1)).tolist()
    }


def _other(row: np.ndarray) -> float:
    return float(row[(row != 0) & (row != 1)][0])


def _count_labels(file: Path, parts: dict[str, ArraySamples]) -> int:
    """How many labels an image has; that they are one class written several times is said."""
    train = parts["train"].targets
    for part, samples in parts.items():
        if samples.targets.ndim != 2 or samples.targets.shape[1] != train.shape[1]:
            raise DataError(
                f"{file}: {part}_labels have shape {samples.targets.shape} and train_labels "
                f"{train.shape}: each image must have as many labels"
            )
    if (train.sum(1) == 1).all():
        notice(
            f"{file}: each training image has exactly one of {train.shape[1]} labels: they are "
            "learnt as labels that may come together; "
            "for classes give labels (n,), the number of the class"
        )
    return train.shape[1]


def _count_classes(file: Path, parts: dict[str, ArraySamples]) -> int:
    if wider_part := next(
        (part for part, samples in parts.items() if samples.targets.ndim != 1), None
    ):
        raise DataError(
            f"{file}: {wider_part}_labels have several columns and train_labels one: each image "
            "must have as many labels"
        )
    classes = {
        part: {label for label in samples.targets.tolist() if label >= 0}
        for part, samples in parts.items()
    }
    count = max(classes["train"], default=0) + 1
    if count < 2:
        raise DataError(
            f"{file}: train_labels hold only one class; a classifier needs at least two"
        )
    _refuse_classes(
        file, "has no training images of class", sorted(set(range(count)) - classes["train"])
    )
    for part, labels in classes.items():
        _refuse_classes(
            file,
            f"{part}_labels hold classes unknown to train_labels:",
            sorted(labels - classes["train"]),
        )
        _refuse_classes(
            file, f"{part}_labels lack classes of train_labels:", sorted(classes["train"] - labels)
        )
    return count


def _refuse_classes(file: Path, problem: str, labels: Sequence[int]) -> None:
    if labels:
        raise DataError(f"{file}: {problem} {', '.join(str(label) for label in labels[:10])}")
