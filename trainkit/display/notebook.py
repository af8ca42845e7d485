"""A bar in the output of a notebook's cell, redrawn in place and kept there when it is done."""

import io
from typing import Any

from rich.console import Console
from rich.progress import Progress

HTML = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:normal;margin:0;'
    "font-family:Menlo,'DejaVu Sans Mono',consolas,'Courier New',monospace\">{code}</pre>"
)


class Drawn:
    """What a cell shows, as HTML and as plain text."""

    def __init__(self, renderable: Any, width: int):
        console = Console(
            file=io.StringIO(),
            record=True,
            width=width,
            force_jupyter=False,
            force_terminal=True,
            color_system="truecolor",
            _environ={},
        )
        console.print(renderable)
        self.text = console.export_text(clear=False).rstrip()
        self.html = console.export_html(inline_styles=True, code_format=HTML)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": self.html}


class NotebookProgress(Progress):
    """rich's bars for notebooks without ipywidgets, which keep no bar in a saved notebook."""

    _handle: Any = None

    def start(self) -> None:
        """Show it below what the cell has shown."""
        from IPython.display import display  # there is a notebook

        self._handle = display(Drawn(self.get_renderable(), self.console.width), display_id=True)

    def refresh(self) -> None:
        """Draw it again, in its place."""
        if self._handle is not None:
            self._handle.update(Drawn(self.get_renderable(), self.console.width))

    def stop(self) -> None:
        """Leave it as it is."""
        self.refresh()
        self._handle = None
