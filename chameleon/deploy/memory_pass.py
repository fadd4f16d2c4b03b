"""The old name of `chameleon.memory`; it goes with the next release."""

import warnings

from chameleon.memory.plan import *  # noqa: F403

warnings.warn("chameleon.deploy.memory_pass is now chameleon.memory", DeprecationWarning, stacklevel=2)
