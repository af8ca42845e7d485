"""Runs the command line: `trainkit`, and `python -m trainkit`."""

import sys

try:
    from trainkit.cli import main
except KeyboardInterrupt:  # afterwards `main` says it
    sys.stderr.write("stopped by Ctrl-C (SIGINT)\n")
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main())
