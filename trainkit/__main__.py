"""Runs the command line for `python -m trainkit`, the same as the console script `trainkit`."""

try:
    from trainkit.cli import main
except KeyboardInterrupt:  # afterwards `main` says it
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main())
