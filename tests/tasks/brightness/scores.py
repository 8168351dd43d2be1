"""The measure of brightness, by the name that it has in the files of a run."""

from softless.experiment.measure import Measure

MEASURES = {
    "off": Measure("error of the brightness", "smallest error of the brightness", higher=False),
}
