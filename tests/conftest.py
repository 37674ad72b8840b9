"""Hypothesis without deadlines (a busy machine is no bug) and with the same examples in every run."""

from hypothesis import settings

settings.register_profile("crossnorm", deadline=None, derandomize=True)
settings.load_profile("crossnorm")
