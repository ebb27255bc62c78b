"""`python -m swarmctl` is the same as `swarmctl`."""

from swarmctl.cli.main import main

if __name__ == "__main__":
    main()
