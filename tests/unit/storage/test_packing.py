"""What a checkpoint can hold, and what is refused before the first step, or right after it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from helpers.logs import rows, weights
from helpers.toy_recipes import recognition, write_checkpoint
from trainkit import Options, train
from trainkit.storage.checkpoint import list_checkpoints, load
from trainkit.storage.packing import pack, require_savable, unpack


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.float64(0.1),
        np.int64(7),
        np.uint8(3),
        np.bool_(True),
        torch.bfloat16,
        (1, (2.5, None)),
    ],
)
def test_types_come_back(value):
    back = unpack(json.loads(json.dumps(pack(value, {}, "state"))), {})
    assert type(back) is type(value) and back == value


@pytest.mark.parametrize(
    "state, message",
    [
        ({"tags": {1, 2}}, "state.optimizer.tags is of type set"),
        ({"rule": print}, "state.optimizer.rule is of type builtin_function_or_method"),
        ({"by": {(1, 2): 3}}, "state.optimizer.by has a key of type tuple"),
        ({"mean": np.arange(3)}, "state.optimizer.mean is of type ndarray"),
        ({"mask": torch.eye(3).to_sparse()}, "state.optimizer.mask is a tensor that is sparse"),
        (
            {"wave": torch.zeros(2, dtype=torch.complex128)},
            "state.optimizer.wave is a tensor of torch.complex128",
        ),
        (
            {"later": torch.empty(2, device="meta")},
            "state.optimizer.later is a tensor that is meta",
        ),
    ],
)
def test_what_cannot_be_held_is_named(state, message):
    with pytest.raises(
        ValueError,
        match=f"no checkpoint can hold this training: {message}.*Keep it out of the optimizer",
    ):
        require_savable(nn.Identity(), {"model": {}, "optimizer": state})


class Kept(nn.Linear):
    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


def with_buffer(buffer):
    model = recognition().model
    model.register_buffer("extra", buffer)
    return model


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: nn.Sequential(Kept(2, 2)),
            "state.model.0._extra_state is of type dict, and not a tensor",
        ),
        (
            lambda: with_buffer(torch.zeros(1).expand(5)),
            "state.model.extra is a tensor that is expanded",
        ),
        (
            lambda: with_buffer(torch.eye(3).to_sparse()),
            "state.model.extra is a tensor that is sparse",
        ),
        (
            lambda: with_buffer(torch.zeros(3, dtype=torch.complex128)),
            "state.model.extra is a tensor of torch.complex128",
        ),
    ],
)
def test_models_are_refused_before_the_first_step(tmp_path, build, message):
    model = build()
    recipe = recognition(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=f"{message}.*persistent=False"):
        train(recipe, Options(out=tmp_path, workers=0))
    assert not (tmp_path / "log.jsonl").exists() and not list_checkpoints(tmp_path / "checkpoints")


def test_a_model_that_does_not_take_up_its_own_state_is_refused():
    class Renamed(nn.Linear):
        def _load_from_state_dict(self, state, prefix, *rest):
            state[f"{prefix}old"] = state.pop(f"{prefix}weight")
            super()._load_from_state_dict(state, prefix, *rest)

    model = Renamed(2, 2)
    with pytest.raises(
        ValueError, match=r"Renamed does not take up its own state dict.*Missing key.*weight"
    ):
        require_savable(model, {"model": model.state_dict()})


def test_state_that_a_step_makes_is_reported_right_after_it(tmp_path):
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for weight in self.param_groups[0]["params"]:
                self.state[weight]["seen"] = {1}

    model = recognition().model
    with pytest.raises(
        ValueError, match=r"state\.optimizer\.state_dict\.state\.0\.seen is of type set"
    ):
        train(
            recognition(model=model, optimizer=Odd(model.parameters(), lr=0.1)),
            Options(out=tmp_path, workers=0),
        )
    assert not list_checkpoints(tmp_path / "checkpoints")


def test_complex_and_half_tensors_come_back(tmp_path):
    tensors = {"wave": torch.randn(3, dtype=torch.complex64), "half": torch.randn(3).bfloat16()}
    require_savable(nn.Identity(), {"model": {}, **tensors})
    path = write_checkpoint(tmp_path, 1, tensors, {})
    assert all(torch.equal(load(path)[0][name], value) for name, value in tensors.items())


def test_a_learning_rate_that_is_a_tensor(tmp_path):
    """It is that of the schedule in each step, and the log has a number."""
    folders = {}
    for lr in (0.05, torch.tensor(0.05)):
        torch.manual_seed(3)
        model = recognition().model
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, foreach=False)
        folders[type(lr)] = tmp_path / type(lr).__name__
        train(
            recognition(model=model, optimizer=optimizer),
            Options(out=folders[type(lr)], workers=0, log_every=1),
        )
    plain, tensor = folders[float], folders[torch.Tensor]
    assert [row["lr"] for row in rows(tensor)] == pytest.approx(
        [row["lr"] for row in rows(plain)], rel=1e-6
    )
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(tensor)[name], value, rtol=1e-5, atol=1e-6)
