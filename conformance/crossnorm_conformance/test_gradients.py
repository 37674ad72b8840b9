"""Are the gradients of the input and of every parameter those of the specification?"""

from crossnorm_conformance.compare import check_quantities


def test_gradients(crossnorm_run, crossnorm_seed, crossnorm_judged):
    case, implementation, execution, device = crossnorm_run
    crossnorm_judged(check_quantities("gradients", implementation, case, execution, device, crossnorm_seed))
