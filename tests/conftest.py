"""What all tests share: how property tests choose their examples."""

import os

from hypothesis import settings

# On a build machine the same examples at every run: what is found there was put in by the change, not by chance.
# Everywhere else they are drawn anew each time, and that is where new faults are found.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
