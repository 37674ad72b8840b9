"""``python -m crossnorm``: the command, for where the script is not on the path."""

from crossnorm.cli import main

if __name__ == "__main__":  # a child process of the suite imports this module
    main()
