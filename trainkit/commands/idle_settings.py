"""Warnings of settings that do nothing, or contradict each other."""

from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

from trainkit.data.dataset_info import DatasetInfo
from trainkit.engine.optimizer_state import has_modes
from trainkit.engine.plan import TrainPlan
from trainkit.options import Options
from trainkit.recipe import Recipe


def idle_settings(recipe: Recipe, options: Options, plan: TrainPlan) -> list[str]:
    """A line for each setting that does nothing, or that another contradicts."""
    order, total, found = plan.order, plan.total_steps, []
    share = order.share(0, 0)
    if options.micro_batch is not None and options.micro_batch >= share.stop:
        found.append(
            f"--micro-batch {options.micro_batch} does nothing: a process has {share.stop} images"
            " of a batch"
        )
    if options.log_every > total:
        found.append(f"--log-every {options.log_every} is more than the {total} steps of the run")
    if options.evaluate_every > recipe.epochs:
        found.append(
            f"--evaluate-every {options.evaluate_every}: the run has {recipe.epochs:g} epochs; one"
            " evaluation"
        )
    if (options.checkpoint_every or 0) > total:
        found.append(
            f"--checkpoint-every {options.checkpoint_every} is more than the {total} steps of"
            " the run"
        )
    left_out = order.num_images - order.steps_per_epoch * recipe.batch_size
    if recipe.drop_last and left_out > 0.1 * order.num_images:
        found.append(
            f"drop_last leaves {left_out} of {order.num_images} images out of each epoch; lower"
            " batch_size"
        )
    grows = DatasetInfo.of(recipe.train_data).final_epoch
    if grows:
        found.append(
            f"images change until epoch {grows} of {recipe.epochs:g}; the results above are of the"
            " first ones"
        )
    covered = {id(weight) for group in recipe.optimizer.param_groups for weight in group["params"]}
    trained = [
        (name, weight) for name, weight in recipe.model.named_parameters() if weight.requires_grad
    ]
    free = [name for name, weight in trained if id(weight) not in covered]
    if free:
        found.append(
            f"{len(free)} weights are not in the optimizer and will not change:"
            f" {', '.join(free[:3])}"
        )
    norms = [name for name, part in recipe.model.named_modules() if isinstance(part, AnyBatchNorm)]
    if norms and has_modes(recipe.optimizer) and options.precise_bn is None:
        found.append(
            f"{type(recipe.optimizer).__name__} evaluates other weights than it trains, and"
            f" {len(norms)} batch norms ({', '.join(norms[:3])}) have the statistics of those it"
            " trains: give --precise-bn"
        )
    return found
