"""Arrays between NumPy and TensorFlow without a copy: at a thousand updates a second, copies would be a good part."""

from __future__ import annotations

from typing import Any

import numpy as np

from model_core.arrays import CACHE_LINE, aligned
from model_core.quiet_tensorflow import tf
from model_core.rbm import RBMParams


def view(variable: Any) -> np.ndarray:
    """A variable's value as it is now, read-only. It stays as it is: the next assignment writes elsewhere."""
    return np.asarray(memoryview(tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)))


def copied_params(variables: list[Any]) -> RBMParams:
    """The parameters that three variables hold now."""
    return RBMParams(*(variable.numpy() for variable in variables))  # `numpy` copies


def tensor(array: np.ndarray) -> Any:
    """The array as a tensor. It shares the memory if it can: the array must not be written to any more."""
    # TensorFlow aborts the process for a tensor that starts elsewhere.
    if array.ctypes.data % CACHE_LINE or not (array.flags.c_contiguous and array.flags.writeable):
        copy = aligned(array.shape, array.dtype)
        copy[...] = array
        array = copy
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def assign(variable: Any, array: np.ndarray) -> None:
    """Sets a variable to an array of its own dtype, as `tensor` takes it."""
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tensor(array))
