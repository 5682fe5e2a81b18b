"""Static int8 by Optimum's ORTQuantizer, run in its environment: python optimum_static.py SOURCE ROWS.npz OUT.

The command line refuses static quantization, since it takes no rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig


class Rows(list):
    """What the quantizer reads of a data set: rows, and what it is called."""

    info = type("Info", (), {"builder_name": "rows", "config_name": "rows"})
    split = "train"

    @property
    def num_rows(self) -> int:
        """Return what a data set's own attribute of this name does."""
        return len(self)


source, rows, out = (Path(argument) for argument in sys.argv[1:4])
arrays = dict(np.load(rows))
count = len(next(iter(arrays.values())))
data = Rows({name: array[place] for name, array in arrays.items()} for place in range(count))
quantizer = ORTQuantizer.from_pretrained(source)
how = AutoQuantizationConfig.avx512(is_static=True, per_channel=True)
ranges = quantizer.fit(
    dataset=data,
    calibration_config=AutoCalibrationConfig.minmax(data),
    operators_to_quantize=how.operators_to_quantize,
    onnx_augmented_model_name=str(rows.with_suffix(".augmented.onnx")),
)
quantizer.quantize(save_dir=out, calibration_tensors_range=ranges, quantization_config=how)
