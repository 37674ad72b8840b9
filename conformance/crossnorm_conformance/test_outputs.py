"""Does the layer compute what its specification says?"""

from crossnorm_conformance.compare import check_quantities


def test_outputs(crossnorm_run, crossnorm_seed, crossnorm_judged):
    case, implementation, execution, device = crossnorm_run
    crossnorm_judged(check_quantities("outputs", implementation, case, execution, device, crossnorm_seed))
