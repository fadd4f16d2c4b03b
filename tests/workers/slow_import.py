"""A target whose import takes longer than a worker may."""

import time

time.sleep(0.5)


def serve(payload: object) -> object:
    """Return the payload."""
    return payload
