"""Do two frameworks agree with each other directly?"""

from crossnorm_conformance.compare import check_agreement


def test_agreement(pair, seed, judged):
    case, first, second, device = pair
    executions = tuple(
        next((e for e in case.executions if e in implementation.executions()), "eager") for implementation in (first, second)
    )
    judged(check_agreement((first, second), case, executions, device, seed))
