"""python -m trainkit: the same as the console script `trainkit`."""

from trainkit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
