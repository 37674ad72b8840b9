"""Where two models part: their layers paired, compared, and what explains a difference."""

from .comparison import diff as diff
from .difference import Difference as Difference
