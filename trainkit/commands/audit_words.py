"""Says in words what the first difference of two trainings is, and what may be behind it."""

from trainkit.engine.audit import Difference

WHY = {
    "image": (
        "the dataset or its transforms draw from a generator that is not seeded for each image, or"
        " keep something from one read to the next, or depend on the worker that reads"
    ),
    "output": (
        "this layer draws from a generator of its own, or keeps something from one step to the next"
        " that no checkpoint has"
    ),
    "loss": "the outputs are equal: the loss draws random numbers, or keeps something of its own",
    "gradient": "outputs and loss are equal: the backward pass adds in an order that changes",
    "generator": "something draws more or fewer random numbers in this step",
    "parameter": (
        "the gradients are equal: the optimizer draws random numbers, or keeps something that its"
        " state_dict() lacks"
    ),
    "buffer": "the layer that has it keeps something that no checkpoint has",
    "optimizer state": "the weights are equal: the optimizer counts something of its own",
    "EMA": "the weights are equal: the average keeps something of its own",
}
WHY["target"] = WHY["image"]
BUILT = "building the recipe draws from a generator that is not seeded, or depends on chance"
RESTORED = "no checkpoint has it, or what restores it changes it"


def in_words(found: Difference) -> str:
    """Name the first difference: step, tensor and value, and what may be behind it."""
    what = {
        "image": f"image {found.name} of the batch, as the network gets it",
        "target": f"the target of image {found.name} of the batch",
        "output": f"the output of {found.name}",
        "loss": "the loss",
        "generator": f"the state of {found.name}",
    }.get(found.kind, f"{found.kind} {found.name}")
    when = f"step {found.step}"
    why = WHY[found.kind]
    if found.restored:
        when, why = f"the state resumed from after step {found.step}", RESTORED
    elif found.step == 0:
        when, why = "the state before the first step", BUILT
    text = f"first in {when}: {what}"
    if found.value is not None:
        looked = "" if found.compared == found.of else f" among {found.compared} evenly spaced"
        text += (
            f"; value {found.value} was {found.first:.9g} and is {found.other:.9g}, the largest"
            f" difference{looked} of {found.of} values"
        )
    elif found.compared:
        text += f"; none of the {found.compared} values compared one by one, of {found.of}"
    return f"{text}. {why[0].upper()}{why[1:]}"
