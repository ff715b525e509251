"""What every test stands on."""

from __future__ import annotations

import os

from hypothesis import settings

# A shared machine is slow at times; the timeout of each test is what ends a hang.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
