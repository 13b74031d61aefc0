"""The number of examples in the search for differences between driver and model."""

from hypothesis import HealthCheck, Phase, settings

THOROUGH = "thorough"
"""The Hypothesis profile that searches longer."""


def register() -> None:
    """Make `--hypothesis-profile=thorough` known."""
    settings.register_profile(THOROUGH, max_examples=2000, stateful_step_count=80, deadline=None)


def search(examples: int, *, shrink: bool = True) -> settings:
    """Return the settings of a short deterministic search, or those of the thorough profile if that is active."""
    thorough = settings.get_current_profile_name() == THOROUGH
    return settings(
        max_examples=settings.default.max_examples if thorough and settings.default else examples,
        stateful_step_count=80 if thorough else 40,
        derandomize=not thorough,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]  # its metaclass hides the enum
        report_multiple_bugs=False,
    )
