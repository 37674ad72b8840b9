"""Are the gradients of the input and of every parameter those of the specification?"""

from crossnorm_conformance.compare import check_quantities


def test_gradients(run, seed, judged):
    case, implementation, execution, device = run
    judged(check_quantities("gradients", implementation, case, execution, device, seed))
