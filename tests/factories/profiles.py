"""How many examples a property is tried on.

A profile of hypothesis says it as a share: ``max_examples`` is percent of what each test asks for with ``examples``.
No example has a deadline, and no health check times one: how long it takes says how busy the machine is.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

LEAST = 5
PROFILES = {
    "quick": 10,  # while one works: seconds
    "default": 100,
    "ci": 100,  # the same examples each time: what fails there fails everywhere
    "thorough": 1000,  # for a night
}


def register() -> None:
    """Make the profiles known; before the command line's ``--hypothesis-profile`` is looked at."""
    for name, share in PROFILES.items():
        settings.register_profile(
            name, parent=settings.get_profile("default"), max_examples=share, deadline=None, derandomize=name == "ci",
            print_blob=True, suppress_health_check=[HealthCheck.too_slow],
        )  # fmt: skip


def examples(count: int, *more: HealthCheck) -> settings:
    """Try a test on so many examples, or the share of them that the profile in force asks for; ``more`` is no error."""
    share = settings.default.max_examples
    found = settings(max_examples=max(LEAST, count * share // 100))
    return settings(found, suppress_health_check=[*found.suppress_health_check, *more]) if more else found
