"""Is the layer right on cases that nobody has listed?"""

from crossnorm_conformance.drawn import check_drawn


def test_drawn(crossnorm_drawn, crossnorm_seed, crossnorm_judged):
    method, implementation, device = crossnorm_drawn
    checks, cases = check_drawn(method, implementation, device, crossnorm_seed)
    crossnorm_judged(checks, cases)
