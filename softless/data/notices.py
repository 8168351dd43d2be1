"""What a person should know about the data without being stopped by it: said once per process, on
the log.
"""

import logging

_log = logging.getLogger("softless.data")
_said: set[str] = set()
MOST = 10_000  # texts that are remembered: a server may say something of each image


def notice(text: str) -> str:
    """Log `text` as a warning the first time it is said, and return it."""
    if text not in _said:
        if len(_said) >= MOST:
            _said.clear()
        _said.add(text)
        _log.warning("%s", text)
    return text
