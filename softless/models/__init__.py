"""Models: timm's hosts with our attention. Importing registers the named ones with timm."""

from softless.models.create import create_model, no_weight_decay
from softless.models.variants import ENTRIES, VARIANTS

__all__ = ["ENTRIES", "VARIANTS", "create_model", "no_weight_decay"]
