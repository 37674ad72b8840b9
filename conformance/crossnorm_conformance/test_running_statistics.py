"""Are the running statistics right after each step, and untouched where nothing may be updated?"""

from crossnorm_conformance.compare import check_quantities


def test_running_statistics(crossnorm_run, crossnorm_seed, crossnorm_judged):
    case, implementation, execution, device = crossnorm_run
    crossnorm_judged(check_quantities("running_statistics", implementation, case, execution, device, crossnorm_seed))
