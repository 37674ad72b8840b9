"""Do the peers still differ as the catalogue says?"""

from crossnorm_conformance.divergences.verdict import check_divergence


def test_divergences(crossnorm_divergence, crossnorm_judged):
    crossnorm_judged(check_divergence(crossnorm_divergence))
