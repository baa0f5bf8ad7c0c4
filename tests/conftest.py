"""Settings of all tests."""

from hypothesis import settings

# The same examples in every run: a failure is then a change's doing. No deadlines: machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
