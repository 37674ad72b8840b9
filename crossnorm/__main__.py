"""``python -m crossnorm``: the command, for where the script is not on the path."""

from crossnorm.cli import main

main()
