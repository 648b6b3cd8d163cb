"""Hypothesis without deadlines: a busy machine must not fail a test that does not measure time."""

from hypothesis import HealthCheck, settings

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
