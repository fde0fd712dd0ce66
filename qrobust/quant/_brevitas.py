"""All that comes from Brevitas. Nothing else imports it."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # It recommends a package for transformers that nothing here uses, and imports a part it deprecates.
    warnings.filterwarnings("ignore", message="fast_hadamard_transform")
    warnings.filterwarnings("ignore", message="brevitas.fx is deprecated")
    from brevitas.inject import ExtendedInjector
    from brevitas.inject.enum import FloatToIntImplType
    from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
    from brevitas.nn.quant_layer import QuantNonLinearActLayer as QuantNLAL
    from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as QuantWBIOL
    from brevitas.proxy import ActQuantProxyFromInjector, WeightQuantProxyFromInjector
    from brevitas.quant_tensor import IntQuantTensor

__all__ = [
    "ActQuantProxyFromInjector",
    "ExtendedInjector",
    "FloatToIntImplType",
    "IntQuantTensor",
    "QuantConv2d",
    "QuantIdentity",
    "QuantLinear",
    "QuantNLAL",
    "QuantWBIOL",
    "WeightQuantProxyFromInjector",
]
