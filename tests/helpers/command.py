"""`trainkit WORDS...` in a folder: `command.py FOLDER ERRORS WORDS...`.

What it writes to standard error goes to the file ERRORS. `helpers.processes.forked` starts it in a
process that has torch imported.
"""

import os
import sys

if __name__ == "__main__":
    folder, errors, *words = sys.argv[1:]
    os.chdir(folder)
    sys.argv[1:] = words
    with open(errors, "wb") as file:
        os.dup2(file.fileno(), 2)
    from trainkit.cli import main

    sys.exit(main())
