"""Networks: torchvision's and timm's by name, and those that torchvision lacks."""
