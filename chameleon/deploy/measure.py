"""The old name of `chameleon.measure`; it goes with the next release."""

import warnings

from chameleon.measure import *  # noqa: F403

warnings.warn("chameleon.deploy.measure is now chameleon.measure", DeprecationWarning, stacklevel=2)
