"""Does bad input raise the right exception, and does it leave the state as it was?"""

from crossnorm_conformance.errors import check_misuse


def test_errors(misuse, judged):
    fault, implementation = misuse
    judged(check_misuse(fault, implementation))
