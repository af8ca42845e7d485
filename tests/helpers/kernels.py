"""A Jupyter kernel, as a notebook has one: cells in, outputs back."""

import os
import re
import time
from queue import Empty
from typing import Any

from jupyter_client.manager import KernelManager

from helpers.processes import PATIENCE, ROOT, TESTS


class Kernel:
    """A started kernel.

    Args:
        folder: to work in.
        **env: variables of its environment, beside those of this process.
    """

    def __init__(self, folder: Any, **env: str):
        path = os.pathsep.join(map(str, (ROOT, TESTS)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env}
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(env=environment, cwd=str(folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def stop(self) -> None:
        """End it, and what it started."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code: str, interrupt_at: str | None = None) -> list[dict[str, Any]]:
        """Run a cell to its end; its outputs, as a notebook's file would hold them.

        Args:
            code: of the cell.
            interrupt_at: pattern of what it shows when it is to be interrupted.
        """
        asked = self.client.execute(code)
        outputs: list[dict[str, Any]] = []
        shown: dict[str, dict[str, Any]] = {}
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            place = content.get("transient", {}).get("display_id")
            if kind == "status" and content["execution_state"] == "idle":
                return outputs
            if kind == "update_display_data" and place in shown:
                shown[place]["data"] = content["data"]
            elif kind in ("stream", "display_data", "execute_result", "error"):
                outputs.append({"kind": kind, **content})
                shown |= {place: outputs[-1]} if place else {}
            if interrupt_at is not None and re.search(interrupt_at, text_of(outputs)):
                interrupt_at = None
                self.manager.interrupt_kernel()
        raise TimeoutError(f"the cell did not end: {text_of(outputs)}")


def text_of(outputs: list[dict[str, Any]]) -> str:
    """All that a cell shows, as text."""
    found = []
    for each in outputs:
        if each["kind"] == "stream":
            found.append(each["text"])
        elif each["kind"] == "error":
            found.append("\n".join(each["traceback"]))
        else:
            found.append(each["data"].get("text/plain", ""))
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(found))
