"""The steps of a recovery, by name."""

BARE, REFIT, DISTIL = "bare", "refit", "distil"  # the first is the exchange alone
STEPS = (REFIT, DISTIL)
