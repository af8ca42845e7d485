"""What the process from which tests fork their commands has imported and prepared once."""

import gc

import accelerate  # noqa: F401
import segmentation_models_pytorch  # noqa: F401
import timm  # noqa: F401
import torch  # noqa: F401
import torchmetrics  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from PIL import Image

import trainkit.commands.api  # noqa: F401
from trainkit.report import page

Image.init()  # the plugins of all formats
page.template()
gc.freeze()  # a fork's collections leave these objects, and so their memory, shared
