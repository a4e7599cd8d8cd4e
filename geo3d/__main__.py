"""`python -m geo3d` is the `geo3d` command."""

from geo3d.cli.main import main

if __name__ == "__main__":
    main()
