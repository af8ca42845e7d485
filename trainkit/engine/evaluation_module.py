"""The module that evaluations and predictions call: no DDP, and no gradients."""

import warnings
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainkit.distributed.fsdp import is_sharded
from trainkit.distributed.unwrapping import without_compile, without_wrappers
from trainkit.errors import is_shortage

SHOWN = 200  # characters of an error


class EvaluationModule:
    """Runs a prepared module past DDP, which would send buffers to all processes in each pass.

    Processes may thus make unlike numbers of passes, but of sharded parameters. Inside
    `torch.inference_mode` a module that cannot run there, such as one that takes a gradient in its
    forward pass, runs under `torch.no_grad`, from the first pass on that fails.

    Args:
        prepared: by accelerate.
        accelerator: that did; None: nothing is compiled.
        is_dense: images are of any size: what was compiled is compiled anew, for all of them.
    """

    def __init__(self, prepared: nn.Module, accelerator: Accelerator | None, is_dense: bool):
        self.is_sharded = is_sharded(prepared)
        self._runs_in_inference_mode = True
        self._compiled_anew = False
        inner = without_wrappers(prepared)
        is_compiled = without_compile(prepared) is not prepared
        self._module: Any = inner
        self._plain = inner
        if self.is_sharded:
            self._module = without_compile(prepared) if is_dense else prepared
        elif is_compiled and not is_dense and without_compile(prepared) is inner:
            self._module = prepared
        elif is_compiled and accelerator is not None:
            settings = accelerator.state.dynamo_plugin.to_kwargs()
            settings |= {"dynamic": True} if is_dense else {}
            self._module, self._compiled_anew = torch.compile(inner, **settings), True

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        """What the module gives, without gradients where none are recorded here."""
        if not torch.is_inference_mode_enabled():
            return self._run(*inputs, **settings)
        if self._runs_in_inference_mode:
            try:
                return self._run(*inputs, **settings)
            except RuntimeError as error:
                if is_shortage(error):
                    raise
        with torch.inference_mode(False), torch.no_grad():
            usual = [each.clone() if isinstance(each, Tensor) else each for each in inputs]
            found = self._run(*usual, **settings)
        self._runs_in_inference_mode = False
        return found

    def _run(self, *inputs: Any, **settings: Any) -> Any:
        """Run it, as it is from the first pass on that cannot be compiled for all sizes."""
        if not self._compiled_anew:
            return self._module(*inputs, **settings)
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._module(*inputs, **settings)
        except TorchDynamoException as error:
            said = " ".join(str(error).split())[:SHOWN]
            warnings.warn(
                f"evaluations run without torch.compile, which failed: {said}",
                RuntimeWarning,
                stacklevel=3,
            )
            self._module, self._compiled_anew = self._plain, False
            return self._plain(*inputs, **settings)
