"""The input pipeline: the batch sampler, image reading, transforms, and one module per dataset."""
