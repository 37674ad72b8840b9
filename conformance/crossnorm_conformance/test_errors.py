"""Does bad input raise the right exception, and does it leave the state as it was?"""

from crossnorm_conformance.errors import check_misuse


def test_errors(crossnorm_misuse, crossnorm_judged):
    fault, implementation = crossnorm_misuse
    crossnorm_judged(check_misuse(fault, implementation))
