"""The moving average of weights.

Against the recurrence in float64, under a training, beside the weights.
"""

import pytest
import torch

from helpers.logs import rows, without_intervals
from helpers.toy_recipes import everything, recognition, run
from trainkit import Options, evaluate, train
from trainkit.data.seeding import seed_host
from trainkit.engine.ema import EMA
from trainkit.engine.run_opening import open_run
from trainkit.engine.setup import Setup
from trainkit.engine.training import Training
from trainkit.storage.checkpoint import list_checkpoints, load
from trainkit.storage.weights import averaged_weights


def test_the_recurrence():
    """A <- d A + (1 - d) W with d = min(decay, (1 + n) / (10 + n)).

    Weights and buffers, tied ones once.
    """
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3)
    )
    model[2].weight = model[0].weight
    ema = EMA(model, decay=0.25)
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    for n in range(6):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        model(torch.randn(4, 3))
        ema.update()
        decay = min(0.25, (1 + n) / (10 + n))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value.double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ema.swapped():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert model[1].num_batches_tracked == 6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_both_are_evaluated_and_the_average_chooses_the_best(tmp_path):
    summary = train(everything(), Options(out=tmp_path, workers=0, keep_checkpoints=9))
    evaluations = rows(tmp_path, "evaluate")
    best = max(evaluations, key=lambda row: row["ema_top1"])
    assert summary["best"] == {"ema_top1": best["ema_top1"], "step": best["step"]}
    path = list_checkpoints(tmp_path / "checkpoints")[-1]
    assert load(path)[1]["ema"]["count"] == 12
    assert without_intervals(evaluate(everything(), path, workers=0)) == summary["final"]
    averages = load(path)[1]["ema"]["averages"]
    torch.save(averages, tmp_path / "averages.pth")
    alone = evaluate(recognition(model=everything().model), tmp_path / "averages.pth", workers=0)
    assert alone["top1"] == summary["final"]["ema_top1"] and "ema_top1" not in alone


def test_it_changes_no_step(tmp_path):
    seed_host(5)
    recipe = everything()
    train(recipe, Options(out=tmp_path / "with", workers=0, seed=5))
    seed_host(5)
    without = everything()
    object.__setattr__(without, "ema", None)
    train(without, Options(out=tmp_path / "without", workers=0, seed=5))
    for name, value in recipe.model.state_dict().items():
        assert torch.equal(value, without.model.state_dict()[name])


def test_a_skipped_step_is_not_averaged(tmp_path):
    from helpers.nonfinite import Planted, step_of

    seed_host(2)
    recipe = everything(train_data=Planted(27, 11))
    options = Options(
        out=tmp_path,
        workers=0,
        log_every=5,
        on_nonfinite="skip",
        checkpoint_every=1,
        keep_checkpoints=20,
    )
    train(recipe, options)
    states = {
        int(path.name[5:]): load(path)[1]["ema"]["averages"]
        for path in list_checkpoints(tmp_path / "checkpoints")
    }
    bad = step_of(11)
    assert all(value.isfinite().all() for value in states[12].values())
    assert all(torch.equal(value, states[bad - 1][name]) for name, value in states[bad].items())
    assert not torch.equal(states[bad]["head.weight"], states[bad + 1]["head.weight"])


@pytest.mark.parametrize("ema", [0.0, 1.0, -3.0])
def test_a_decay_is_checked(ema):
    with pytest.raises(ValueError, match=f"ema is {ema}; it must be between 0 and 1"):
        recognition(ema=ema)


def test_going_on_without_its_state_is_refused(tmp_path):
    run("recognition", tmp_path, seed=5)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(ValueError, match="ema was None and is 0.9"):
        train(recognition(ema=0.9), Options(out=tmp_path, workers=0, seed=5))


def test_measuring_an_average_that_was_not_kept_is_refused(tmp_path):
    run("recognition", tmp_path, seed=5)
    with pytest.raises(
        ValueError, match="ema is 0.9, and .* holds no EMA weights: evaluate with --ema None"
    ):
        evaluate(recognition(ema=0.9), list_checkpoints(tmp_path / "checkpoints")[-1], workers=0)


class Held(torch.nn.Module):
    """What a network holds besides weights.

    A mask of -inf, a table that is not saved, tied weights, a complex one.
    """

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = (
            torch.nn.Linear(3, 3),
            torch.nn.BatchNorm1d(3),
            torch.nn.Linear(3, 3),
        )
        self.second.weight = self.first.weight
        self.wave = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.hidden = torch.nn.Parameter(
            torch.triu(torch.full((3, 3), -torch.inf), 1), requires_grad=False
        )
        self.register_buffer("mask", torch.triu(torch.full((3, 3), -torch.inf), 1))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("index", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def moved(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1
        model.scale += 1
    model(torch.randn(4, 3))


def test_names_are_those_of_the_state_dict_and_buffers_are_the_models(tmp_path):
    model = Held()
    ema = EMA(model, 0.1)  # 0.9 of the new ones
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved(model)
    ema.update()
    averages, now = ema.state_dict()["averages"], model.state_dict()
    assert list(averages) == list(now) and "index" not in averages
    for name in ("first.weight", "second.weight", "wave", "norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(averages[name], 0.1 * before[name] + 0.9 * now[name])
        assert not torch.equal(averages[name], now[name])
    for name in ("mask", "hidden", "scale", "norm.num_batches_tracked"):
        assert torch.equal(averages[name], now[name]), name
    other = EMA(model, 0.1)
    other.load_state_dict(ema.state_dict())
    assert other.count == 1
    assert all(
        torch.equal(value, averages[name]) for name, value in other.state_dict()["averages"].items()
    )


def test_a_mask_keeps_average_and_count(tmp_path):
    """Bit for bit what an average gives that never heard of the skipped steps."""
    torch.manual_seed(3)
    model = Held()
    masked, plain = EMA(model, 0.25), EMA(model, 0.25)
    for number in range(12):
        moved(model)
        skipped = number in (0, 3, 4)
        masked.update(torch.tensor(skipped))
        if not skipped:
            plain.update()
    assert masked.state_dict()["count"] == plain.state_dict()["count"] == 9
    for name, value in plain.state_dict()["averages"].items():
        assert torch.equal(masked.state_dict()["averages"][name], value), name


def test_fp16_skips_do_not_move_it(tmp_path):
    """A GradScaler of the CPU in place of the GPU's, and gradients that overflow as long as its
    scale is large."""
    recipe = everything()
    recipe.model.head.weight.register_hook(
        lambda grad: torch.where(grad.abs().max() > 2.0**12, torch.inf, grad)
    )
    setup = Setup(recipe, Options(out=tmp_path, workers=0, keep_checkpoints=20))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=100)
    setup.accelerator.scaler = scaler
    run, found = open_run(setup, {}, None)
    training = Training(setup, run)
    training.resume(found)
    training.stepper.start()
    batches = setup.plan.loader(0, setup.plan.total_steps, setup.accelerator, workers=0)
    for step, (images, targets, bad_images) in enumerate(batches):
        stats = training.stepper(step, images, targets)
        training.state.advance(len(images), seconds=1.0)
        training.reporter.step(stats, bad_images)
        training.reporter.log_row()
        training.checkpointer.save()
    run.close()
    skipped = rows(tmp_path)[-1]["skipped_steps"]
    states = [load(path)[1]["ema"] for path in list_checkpoints(tmp_path / "checkpoints")]
    assert 0 < skipped < 12 and states[-1]["count"] == 12 - skipped
    for before, after, row, then in zip(states, states[1:], rows(tmp_path)[1:], rows(tmp_path)):
        was_skipped = row.get("skipped_steps", 0) > then.get("skipped_steps", 0)
        moved = not torch.equal(before["averages"]["head.weight"], after["averages"]["head.weight"])
        assert moved is not was_skipped and after["count"] - before["count"] == moved


def test_a_state_of_an_earlier_version_is_measured_and_not_trained_on(tmp_path):
    """It had the parameters' first names and all buffers."""
    model = Held()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    named = [*model.named_parameters(), *model.named_buffers()]
    old = {name: value + 1 if value.is_floating_point() else value for name, value in named}
    ema = EMA(model, 0.9)
    with pytest.raises(
        ValueError,
        match=r"1 unknown to the model \(index\); 1 missing \(second.weight\).*--init-from",
    ):
        ema.load_state_dict({"count": 3, "averages": old})
    ema.load_state_dict({"count": 3, "averages": old}, strict=False)
    assert torch.equal(ema.state_dict()["averages"]["second.weight"], old["first.weight"])
    mapped = averaged_weights(weights, old)
    assert list(mapped) == list(weights) and torch.equal(
        mapped["second.weight"], old["first.weight"]
    )
    weights["other"] = torch.randn(3, 3)
    with pytest.raises(ValueError, match="has no average of other"):
        averaged_weights(weights, old)


def test_a_parameter_outside_the_state_dict_is_refused():
    model = Held()

    def without_wave(module, state, prefix, metadata):
        del state["wave"]

    model.register_state_dict_post_hook(without_wave)
    with pytest.raises(ValueError, match=r"Held.state_dict\(\) lacks 1 parameters \(wave\)"):
        EMA(model, 0.9)
