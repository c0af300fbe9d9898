"""`python -m device`: the same as the console script."""

from device.cli import main

if __name__ == "__main__":
    main()
