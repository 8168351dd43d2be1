"""What a batch is trained for: each task turns model outputs and targets into a loss."""

from softless.tasks.classification import Classification

__all__ = ["Classification"]
