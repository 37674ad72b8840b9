"""Does the layer compute what its specification says?"""

from crossnorm_conformance.compare import check_quantities


def test_outputs(run, seed, judged):
    case, implementation, execution, device = run
    judged(check_quantities("outputs", implementation, case, execution, device, seed))
