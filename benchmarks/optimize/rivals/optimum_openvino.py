"""int8 by Optimum Intel's OVQuantizer, run in its environment: python optimum_openvino.py SOURCE ROWS.npz OUT KIND.

The command line exports checkpoints of known architectures and calibrates on data sets of a hub; an ONNX file and rows
are taken in Python. KIND is static or weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
from optimum.intel import (
    OVConfig,
    OVModelForCustomTasks,
    OVQuantizationConfig,
    OVQuantizer,
    OVWeightQuantizationConfig,
)
from transformers import PretrainedConfig

source, rows, out = (Path(argument) for argument in sys.argv[1:4])
arrays = dict(np.load(rows))
count = len(next(iter(arrays.values())))
data = nncf.Dataset([{name: array[place : place + 1] for name, array in arrays.items()} for place in range(count)])
PretrainedConfig().save_pretrained(source)
model = OVModelForCustomTasks.from_pretrained(source, from_onnx=True, config=PretrainedConfig(), compile=False)
static = sys.argv[4] == "static"
how = OVQuantizationConfig(bits=8, num_samples=count) if static else OVWeightQuantizationConfig(bits=8, sym=True)
OVQuantizer(model).quantize(
    calibration_dataset=data if static else None, save_directory=out, ov_config=OVConfig(quantization_config=how)
)
