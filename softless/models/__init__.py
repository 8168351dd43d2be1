"""Models: timm's hosts with our attention. Importing registers the named ones with timm."""

from softless.models.create import create_model, no_weight_decay
from softless.models.variants import ENTRIES, VARIANTS
from softless.models.weights import Loaded, load_weights

__all__ = ["ENTRIES", "VARIANTS", "Loaded", "create_model", "load_weights", "no_weight_decay"]
