"""The conformance suite: does a normalization layer do what its specification says?

Cases (data) meet implementations (plain objects behind one protocol); the error of each is reported in rounding units. Only
the modules in ``implementations`` import a framework. This door opens on what a test of a layer of one's own needs:

>>> import crossnorm, numpy as np
>>> from crossnorm_conformance import check
>>> def rms_norm(x, *, scale):
...     return x / np.sqrt((x * x).mean(-1, keepdims=True)) * scale  # forgets eps
>>> report = check(rms_norm, crossnorm.RMSNormSpec(shape=(6,), eps=1e-2))
>>> report.passed
False
"""

from .case import Case as Case
from .certify import check as check
from .certify import implementation as implementation
from .certify import rerun as rerun
from .implementations import SuiteError as SuiteError
from .report import Report as Report
