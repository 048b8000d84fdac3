"""Make a trained model smaller: pruning, quantization, low rank, distillation; and LoRA.

Read in this order: ``pruning.py`` (zeros), ``structured.py`` (smaller arrays), ``affine.py`` and
``int8.py`` (fewer bits), ``low_rank.py`` (thinner matrices), ``distillation.py`` (a small model
learns from a large one), ``lora.py`` (fine-tuning with few trained parameters). ``files.py`` saves
all of them. The compression of *gradients* is in ``parallel/gradient_compression``.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "pruning": ["apply_masks", "magnitude_masks", "sparsity"],
        "gradual": ["GradualPruning", "cubic"],
        "units": ["Units", "find_units"],
        "structured": ["keep_largest", "shrink"],
        "affine": ["Grid", "asymmetric", "symmetric"],
        "calibration": ["CALIBRATIONS", "observe"],
        "int8": ["Int8Conv2d", "Int8Linear", "quantize_int8"],
        "grouped": ["GroupedLinear", "quantize_weights"],
        "aware": ["Aware", "convert", "fake_quantize", "prepare"],
        "low_rank": ["Factored", "factor"],
        "lora": ["LoRA", "adapt", "adapted_names", "merge"],
        "distillation": ["Distillation", "soft_cross_entropy"],
        "files": ["FileError", "load", "save"],
        "measuring": ["Sizes", "seconds_a_sample", "sizes"],
        "experiment": ["COMPRESS_TASKS", "RECIPES", "compress"],
        "training": ["fit"],
        "choosing": ["GOALS", "choose"],
        "report": [],
    },
)
