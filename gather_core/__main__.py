"""`python -m gather_core`."""

from gather_core.cli import main

if __name__ == "__main__":
    main()
