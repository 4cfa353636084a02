"""What numba lacks for kernels: memory by its address, and a register of 16 floats.

A value of type `float32x16` lives in one AVX-512 register, two of AVX2, four of NEON: LLVM sees to
that."""

# mypy: disable-error-code="attr-defined,no-untyped-call,call-arg"
# numba is typed in part only

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, models, register_model

# Not "fast" as a whole: NaN and infinity must stay what they are, for a diverged run to be seen.
FAST = {"contract", "reassoc", "nsz", "arcp"}
inline = njit(inline="always", fastmath=FAST, error_model="numpy")


class _Register(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("float32x16")


_register = _Register()
_VECTOR = ir.VectorType(ir.FloatType(), 16)


@register_model(_Register)
class _RegisterModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _pointer(builder: Any, address: Any, index: Any) -> Any:
    """LLVM's pointer to the register that begins at float `index` from `address`."""
    start = builder.inttoptr(address, ir.FloatType().as_pointer())
    return builder.bitcast(builder.gep(start, [index]), _VECTOR.as_pointer())


@intrinsic
def _void(context: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.intp), code


@intrinsic
def zero(context: Any) -> Any:
    """A register of zeros."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_VECTOR, None)

    return _register(), code


@intrinsic
def load(context: Any, address: Any, index: Any) -> Any:
    """The 16 floats from float `index` of `address` on; aligned to 4 bytes, as any float is."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_pointer(builder, *args))
        value.align = 4
        return value

    return _register(types.intp, types.intp), code


@intrinsic
def store(context: Any, address: Any, index: Any, value: Any) -> Any:
    """Write a register from float `index` of `address` on."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(builder, *args[:2])).align = 4
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, _register), code


@intrinsic
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c in one rounding."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.fmul(args[0], args[1], flags=("contract",))
        return builder.fadd(product, args[2], flags=("contract",))

    return _register(_register, _register, _register), code


@inline
def floats(address: int, count: int) -> Any:
    """The `count` floats at an address, as an array that owns nothing."""
    return carray(_void(address), (count,), np.float32)
