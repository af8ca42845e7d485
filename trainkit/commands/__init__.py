"""Commands: one module each, with a function `run(first, words) -> int`, the exit code."""

# what each takes first; nothing where it is empty
COMMANDS = {
    "train": "RECIPE",
    "check": "RECIPE",
    "audit": "RECIPE",
    "doctor": "RECIPE|FOLDER",
    "pack": "RECIPE",
    "evaluate": "RUN",
    "report": "RUN",
    "predict": "RUN",
    "export": "RUN",
    "average": "RUN",
    "push": "RUN",
    "replay": "RUN",
    "recipes": "",
    "new": "RECIPE",
}
