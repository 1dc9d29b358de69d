"""Compiled: calls of `kernels.gibbs` taken from a queue, by threads that never ask for the interpreter's lock.

A thread that returns to Python after each call waits for the lock, behind whatever the event loop is doing, and
then holds it while the loop waits: in a server with as many engine threads as cores, a sixth of their time. So a
thread stays in here. It reads the number of a call from one pipe, finds the call in a table, does the work, and
writes the number into another. The system gives each number to one reader, and a reader without work sleeps.
"""

from __future__ import annotations

import time

import numpy as np
from llvmlite import ir
from numba import carray
from numba.core import types
from numba.extending import intrinsic

from model_core.kernels import gibbs
from model_core.kernels_draws import jit
from model_core.kernels_rows import TILE, Rows

# Where the arrays of a call begin: of its chains, then of its model.
OF_CHAINS = ("visible", "probs", "numbers", "clamp", "num_chains", "num_clamped")
OF_MODEL = (
    "hidden_tiles", "hidden_bias", "num_hidden", "padded_hidden",
    "visible_tiles", "visible_bias", "num_visible", "padded_visible",
)  # fmt: skip
CALL = np.dtype(
    [*((name, np.int64) for name in (*OF_CHAINS, *OF_MODEL, "nanoseconds")), ("unit", np.float32)], align=True
)
SEED, STEPS, FIRST_STEP, TEMPERATURE = range(4)  # rows of `numbers`, int64 [4, chains]; the last holds float32
NOBODY = -1
_NUMBER_BYTES = 8
_MOST_FAILURES = 1000  # a signal may interrupt a read, nothing else should

_read = types.ExternalFunction("read", types.intp(types.intc, types.voidptr, types.uintp))
_write = types.ExternalFunction("write", types.intp(types.intc, types.voidptr, types.uintp))
_clock = types.ExternalFunction("clock_gettime", types.intc(types.intc, types.voidptr))
_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 1)


@intrinsic
def _pointer(typing_context, address):
    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


@jit
def _now(word):
    _clock(_MONOTONIC, word.ctypes)
    return 1_000_000_000 * word[0] + word[1]


@jit
def _run(call):
    chains, num_visible = call.num_chains, call.num_visible
    # One row more than there are units; see `kernels_rows.Rows`.
    to_hidden = Rows(
        carray(_pointer(call.hidden_tiles), (call.padded_hidden // TILE, num_visible + 1, TILE), np.int16),
        carray(_pointer(call.hidden_bias), (call.padded_hidden,), np.float32),
        call.num_hidden,
    )
    to_visible = Rows(
        carray(_pointer(call.visible_tiles), (call.padded_visible // TILE, call.num_hidden + 1, TILE), np.int16),
        carray(_pointer(call.visible_bias), (call.padded_visible,), np.float32),
        num_visible,
    )
    numbers = carray(_pointer(call.numbers), (4, chains), np.int64)
    gibbs(
        carray(_pointer(call.visible), (chains, num_visible), np.uint8),
        carray(_pointer(call.probs), (chains, num_visible), np.float32),
        np.empty((0, 0), np.int32),
        numbers[SEED].view(np.uint64),
        numbers[STEPS],
        numbers[FIRST_STEP],
        numbers[TEMPERATURE].view(np.float32)[:chains],
        carray(_pointer(call.clamp), (call.num_clamped, num_visible), np.bool_),
        to_hidden,
        to_visible,
        call.unit,
    )


@jit
def work_off(queue, done, calls, hand):
    """Does the calls whose numbers come out of the pipe `queue`, and writes each number into the pipe `done`.

    Args:
      hand: int64 [1]; holds the number of the call under way, else NOBODY, also when this raises (MemoryError).

    Returns:
      A number that is not in the table `calls`: its work is the caller's. NOBODY, if the pipe was closed, or if the
      system failed too often to read from it.
    """
    word, failures = np.empty(2, np.int64), 0
    while failures < _MOST_FAILURES:
        hand[0] = NOBODY
        got = _read(queue, hand.ctypes, _NUMBER_BYTES)
        if got == 0:
            return NOBODY
        if got != _NUMBER_BYTES:
            failures += 1
            continue
        number = hand[0]
        if number >= len(calls):
            return number
        began = _now(word)
        _run(calls[number])
        calls[number].nanoseconds = _now(word) - began
        while _write(done, hand.ctypes, _NUMBER_BYTES) != _NUMBER_BYTES:
            continue  # a signal came; the pipe has room for more than there are calls
    return NOBODY
