"""Do two frameworks agree with each other directly, and the CPU with a GPU?"""

from crossnorm_conformance.compare import check_agreement


def test_agreement(crossnorm_pair, crossnorm_seed, crossnorm_judged):
    case, first, second, devices = crossnorm_pair
    executions = tuple(
        next((e for e in case.executions if e in implementation.executions()), implementation.executions()[0])
        for implementation in (first, second)
    )
    crossnorm_judged(check_agreement((first, second), case, executions, devices, crossnorm_seed))
