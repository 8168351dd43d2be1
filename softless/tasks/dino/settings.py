"""The settings of self-supervision: the group `dino` of a recipe."""

from dataclasses import dataclass

from softless.experiment.fields import CHANCE, COUNT, SHARE, SIDE, SOME, TaskSettings, setting


@dataclass(frozen=True)
class DinoSpec(TaskSettings):
    """Self-supervision by DINO.

    The crops and colours of its views are here; the fields of `augment` are for classification.
    """

    outputs: int = setting(65536, "outputs of the projection head", "[2, 1000000000]")
    hidden: int = setting(2048, "width inside it", COUNT)
    bottleneck: int = setting(256, "width ahead of its last layer", COUNT)
    norm_last_layer: bool = setting(
        default=True, says="whether the rows of the last layer keep length 1"
    )
    freeze_last_layer: int = setting(
        1, "epochs in which the last layer does not move", SOME, unit="epochs"
    )
    momentum: tuple[float, float] = setting(
        (0.996, 1.0),
        "momentum of the teacher at the first step and the last; a cosine between",
        CHANCE,
    )
    teacher_temp: tuple[float, float] = setting(
        (0.04, 0.07),
        "temperature of the teacher at first and after its warm-up; a line between",
        "(0, 1000]",
    )
    teacher_temp_epochs: int = setting(
        30, "warm-up of the teacher's temperature", SOME, unit="epochs"
    )
    student_temp: float = setting(0.1, "temperature of the student", "(0, 1000]")
    center_momentum: float = setting(0.9, "momentum of the centre", "[0, 1)")
    weight_decay_end: float | None = setting(
        0.4,
        "weight decay at the end, along a cosine from optim.weight_decay; none stays there",
        "(0, inf)",
    )
    local_crops: int = setting(8, "crops beside two global ones of data.image_size", "[0, 1000]")
    local_size: int = setting(96, "side of a local crop", SIDE, unit="pixels")
    reduce: int | None = setting(
        None,
        "short side to which larger images are reduced ahead of the crops, once",
        SIDE,
        unit="pixels",
    )
    global_scale: tuple[float, float] = setting(
        (0.4, 1.0), "share of the area in a global crop", SHARE, rising=True
    )
    local_scale: tuple[float, float] = setting(
        (0.05, 0.4), "share of the area in a local crop", SHARE, rising=True
    )
    hflip: float = setting(0.5, "chance of a horizontal flip", CHANCE)
    vflip: float = setting(0.0, "chance of a vertical flip", CHANCE)
    color_jitter: float = setting(
        0.5, "strength; 0.5 is brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1", "[0, 2.5]"
    )
    grayscale: float = setting(0.2, "chance of a view without colours", CHANCE)
    blur: tuple[float, float, float] = setting(
        (1.0, 0.1, 0.5),
        "chance of a blur for the first, the second global crop and local ones",
        CHANCE,
    )
    blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0), "width of the blur", "(0, 1000]", unit="pixels", rising=True
    )
    solarize: float = setting(0.2, "chance of solarisation for the second global crop", CHANCE)


SETTINGS = DinoSpec
