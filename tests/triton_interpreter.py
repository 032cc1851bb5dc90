"""Triton's interpreter in less than half of its time. It runs the tests of Triton where there is no GPU."""

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def hasten() -> None:
    """Replace the two functions of Triton that take most of its time by others that do the same."""
    patch = interpreter._patch_lang

    def patch_once(fn):
        """A kernel replaces what is in triton.language. Each function that it calls would look for it all again."""
        names = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        return patch(fn) if any(tl.core.is_builtin(name.load) for name in names) else interpreter._LangPatchScope()

    def check_overflow(self, left, right, operation):
        """Integers of at most 32 bits have a result that fits. NumPy knows; Triton takes six operations of its own."""
        integer = left.type.scalar
        if integer.int_bitwidth < 64:
            result = EXACT[operation.__name__](*(x.handle.data.astype(np.int64) for x in (left, right)))
            fits = integer.get_int_min_value() <= result.min() and result.max() <= integer.get_int_max_value()
            assert fits, f"int{integer.int_bitwidth} overflow detected for operation {operation.__name__}"

    interpreter._patch_lang = patch_once
    TritonSemantic.binary_op_sanitize_overflow_impl = check_overflow
