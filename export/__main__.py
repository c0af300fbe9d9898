"""`python -m export`: the same as the console script."""

from export.cli import main

if __name__ == "__main__":
    main()
