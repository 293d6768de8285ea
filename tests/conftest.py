"""What all tests share: how property tests choose their examples."""

import os

from hypothesis import settings

# On a build machine the same examples at every run: what is found there was put in by the change, not by chance.
# Everywhere else they are drawn anew each time, and that is where new faults are found.
# No deadline anywhere: how long an example takes says how busy the machine is, nothing about the code.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("here")
if os.environ.get("CI"):
    settings.load_profile("ci")
