"""The run, published model or exported file that is served, opened; and what does not fit is said
before the first request.
"""

from pathlib import Path

from softless.data.notices import notice
from softless.errors import SoftlessError, UsageError, need
from softless.evaluation.run import LoadedRun
from softless.experiment.about import ABOUT, read_about
from softless.experiment.groups import DENSE
from softless.exporting.loaded import ExportedModel
from softless.exporting.use import amp_for, device_for, precision_for, run_or_file
from softless.prediction.setting import Setting
from softless.serving.page import WAYS
from softless.serving.subject import Served, Subject, TestImages
from softless.tasks.labelled import check_there, samples_of, source_of
from softless.tasks.table import TABLE, dense_samples
from softless.training.world import choose_device

SHOWN = 12  # test images that the page offers


def opened(run: str | Path, twin: str | Path | None = None, device: str = "auto") -> Subject:
    """The model to serve, beside its twin.

    Raises:
        DataError: no run, or a damaged one.
        UsageError: a run that answers no images, or a twin of other classes or another task.
    """
    served = _served(run, device)
    beside = None if twin is None else _served(twin, device)
    if beside is not None:
        _check_twin(served.loaded, beside.loaded)
    return Subject(served, beside, _test_images(served))


def _served(run: str | Path, device: str) -> Served:
    target = choose_device(device_for(run, device))
    loaded = run_or_file(run, target)
    if loaded.task == "dino":
        raise UsageError(
            f"{loaded.path} learned features without labels, so it names nothing that a page could "
            "show: serve a run of a classifier, a detector or a segmenter"
        )
    if TABLE[loaded.task].predict is None or loaded.task not in WAYS:
        raise UsageError(
            f"{loaded.path} is a run of {loaded.task}, which answers no images on a page: "
            "serve a run of a classifier, a detector or a segmenter"
        )
    need(*TABLE[loaded.task].task.needs)
    setting = Setting(target, 1, amp_for(None, loaded))
    exported = isinstance(loaded.model, ExportedModel)
    return Served(
        loaded,
        setting,
        _name(loaded),
        precision_for(setting.amp, loaded),
        exported,
        "" if exported or loaded.stored else _data_of(loaded),
    )


def _name(loaded: LoadedRun) -> str:
    """The model in words, without a place."""
    operators = " and ".join(loaded.best.get("operators", ())) or str(
        loaded.best.get("model_args", {}).get("op", "")
    )
    model = str(loaded.best.get("architecture", "model"))
    named = operators and operators not in model.split("_")
    text = f"{model}, {operators}" if named else model
    return f"{text}, exported" if isinstance(loaded.model, ExportedModel) else text


def _check_twin(loaded: LoadedRun, twin: LoadedRun) -> None:
    if loaded.task != twin.task:
        raise UsageError(
            f"--twin {twin.path} is a run of {twin.task}, and {loaded.path} is a run of "
            f"{loaded.task}: name a run of the same task"
        )
    if loaded.classes != twin.classes:
        raise UsageError(
            f"--twin {twin.path} has other classes than {loaded.path} ({_few(twin.classes)}, and "
            f"{_few(loaded.classes)}): name a run that was trained on the same"
        )
    if loaded.in_chans != twin.in_chans or loaded.scale != twin.scale:
        raise UsageError(
            f"--twin {twin.path} takes other images than {loaded.path} ({twin.in_chans} channels, "
            f"and {loaded.in_chans}, or another range): name a run that was trained on the same"
        )


def _few(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "") or "none"


def _test_images(served: Served) -> TestImages | None:
    """Some test images of the run, spread over them; None where they are not there, which is
    said.
    """
    loaded = served.loaded
    if served.exported or loaded.stored:
        return None
    try:
        check_there(loaded, None, None)
        if loaded.task in DENSE:
            _, samples = dense_samples(loaded, None, "test")
            classes = loaded.classes
        else:
            labelled = samples_of(loaded, source_of(loaded, None, None), "test")
            samples, classes = labelled.samples, labelled.classes
    except (SoftlessError, OSError) as error:
        notice(f"the page offers no test images: {error}")
        return None
    count = min(SHOWN, len(samples))
    places = [number * len(samples) // count for number in range(count)]
    return TestImages(samples.take(places), classes, loaded.task in DENSE)


def _data_of(loaded: LoadedRun) -> str:
    """What a run was trained on, in words; empty where a place would be told."""
    described = read_about(loaded.path / ABOUT).get("data") or {}
    name = str(described.get("name", "")) or loaded.recipe.data.source
    return "" if "/" in name or "\\" in name else name
