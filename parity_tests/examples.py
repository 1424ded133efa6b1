"""How many examples hypothesis draws: all of them on request, a quarter in an everyday run.

`pytest --hypothesis-profile=all` draws every example. An everyday run draws others each time, so
what it leaves out today it may draw tomorrow.
"""

from hypothesis import HealthCheck, Phase, settings

FEW = 12  # up to here all are drawn every time


def examples(n, **more):
    """Settings for `n` examples where all are drawn; `more` are other settings of hypothesis.

    A fixture stays the same for all examples of a test, which is what we want.
    """
    share = settings.default.max_examples / 100
    return settings(
        max_examples=max(min(n, FEW), round(n * share)),
        deadline=None,
        phases=more.pop("phases", [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]),
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
        **more,
    )
