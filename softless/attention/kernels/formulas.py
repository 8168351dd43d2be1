"""Formulas of our kernels for torch's own counter, which tells no user of a triton that nobody
asked for.
"""

import logging

_log = logging.getLogger("torch.utils.flop_counter")
_before, _log.disabled = _log.disabled, True
try:
    from torch.utils.flop_counter import register_flop_formula
finally:
    _log.disabled = _before

__all__ = ["register_flop_formula"]
