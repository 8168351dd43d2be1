"""What a person should know about the data without being stopped by it: said once per process, on
the log.
"""

import logging

_log = logging.getLogger("softless.data")
_said: set[str] = set()


def notice(text: str) -> str:
    """Log `text` as a warning the first time it is said, and return it."""
    if text not in _said:
        _said.add(text)
        _log.warning("%s", text)
    return text
