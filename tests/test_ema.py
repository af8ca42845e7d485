"""The moving average of weights: against the recurrence in float64, under a training, beside the weights."""

import pytest
import torch
from test_loop import rows, without_intervals
from toys import everything, recognition, run

from trainkit import Options, evaluate, train
from trainkit.checkpoint import list_checkpoints, load
from trainkit.data.seeds import seed_host
from trainkit.ema import EMA


def test_the_recurrence():
    """A <- d A + (1 - d) W with d = min(decay, (1 + n) / (10 + n)); weights and buffers, tied ones once."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
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
    summary = train(everything(), Options(out=tmp_path, workers=0, keep=9))
    evaluations = rows(tmp_path, "evaluate")
    best = max(evaluations, key=lambda row: row["ema_top1"])
    assert summary["best"] == {"ema_top1": best["ema_top1"], "step": best["step"]}
    path = list_checkpoints(tmp_path / "checkpoints")[-1]
    assert load(path)[1]["ema"]["count"] == 12
    assert without_intervals(evaluate(everything(), path, Options(workers=0))) == summary["final"]
    averages = load(path)[1]["ema"]["averages"]
    torch.save(averages, tmp_path / "averages.pth")
    alone = evaluate(recognition(model=everything().model), tmp_path / "averages.pth", Options(workers=0))
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
    from test_nonfinite import Planted, step_of

    seed_host(2)
    recipe = everything(train_data=Planted(27, 11))
    options = Options(out=tmp_path, workers=0, log_every=5, on_nonfinite="skip", checkpoint_every=1, keep=20)
    train(recipe, options)
    states = {
        int(path.name[5:]): load(path)[1]["ema"]["averages"] for path in list_checkpoints(tmp_path / "checkpoints")
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
    with pytest.raises(ValueError, match="ema is 0.9, and .* holds no averaged weights: evaluate with --ema None"):
        evaluate(recognition(ema=0.9), list_checkpoints(tmp_path / "checkpoints")[-1], Options(workers=0))
