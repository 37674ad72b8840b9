"""Do two frameworks agree with each other directly, and the CPU with a GPU?"""

from crossnorm_conformance.compare import check_agreement, executions_of


def test_agreement(crossnorm_pair, crossnorm_seed, crossnorm_judged):
    case, first, second, devices = crossnorm_pair
    pair = first, second
    crossnorm_judged(check_agreement(pair, case, executions_of(pair, case), devices, crossnorm_seed))
