"""Block Gibbs chains in TensorFlow: the reference that the CPU engine is measured against, and the way onto a GPU.

Two dense matrix products a step. XLA fuses all the rest (hashing, logits, comparison) into one pass over each
layer: against the same code as a plain `tf.function`, 10 times the speed for one chain, 2 to 3 times for 64 to 1,024.
Inside, a layer is [units, chains]: a fifth faster here than [chains, units] from 64 chains up.

What depends on what. A program is traced once for each batch size of 1, 2, 4, 8, ..., each shape of model and each
mode, and then serves any parameters, number of steps, options and seeds; batches are filled up to the next of these
sizes. Chains that have done their own number of steps stand still while the rest go on.

A chain draws the noise of `randomness`, so slices, repeats and processes of one machine give the same bits. The matrix
product of another batch size may round a logit differently: alone or among others, a chain has the same
distribution, and nearly always but not always the same states.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from model_core.chains import Advanced, Chains
from model_core.quiet_tensorflow import tf
from model_core.randomness import GAMMA, HIDDEN_LAYER, MIX_1, MIX_2, VISIBLE_LAYER
from model_core.rbm import RBMParams, checked_params

_LARGEST_BELOW_ONE = 1.0 - 2.0**-24


class Prepared(NamedTuple):
    """A model as float32 tensors; both directions are stored, since products with rows that lie together are faster."""

    weights: tf.Tensor  # [visible, hidden]
    weights_transposed: tf.Tensor  # [hidden, visible]
    visible_bias: tf.Tensor  # [visible, 1]
    hidden_bias: tf.Tensor  # [hidden, 1]


class TensorFlowEngine:
    """Advances chains on whatever device TensorFlow finds; see `chains.Engine` for the contract."""

    name = "tensorflow"

    def prepare(self, params: RBMParams) -> Prepared:
        """Copies a model into tensors; immutable, safe to share by threads."""
        params = checked_params(*params)
        weights = tf.constant(params.weights, tf.float32)
        biases = [tf.constant(bias, tf.float32)[:, None] for bias in (params.visible_bias, params.hidden_bias)]
        return Prepared(weights, tf.transpose(weights), *biases)

    def advance(self, prepared: Prepared, chains: Chains) -> Advanced:
        """Gibbs sampling: (visible states, uint8; visible_probs given the last hidden states, float32)."""
        states, probs = _run(_gibbs, prepared, chains)
        return states, probs

    def advance_mean_field(self, prepared: Prepared, chains: Chains) -> Advanced:
        """The article's deterministic map, float32 probabilities; both results are the same array."""
        (probs,) = _run(_mean_field, prepared, chains)
        return probs, probs


def num_traces() -> int:
    """How many programs were traced in this process: bounded by batch sizes x model shapes x modes."""
    return sum(program.experimental_get_tracing_count() for program in (_gibbs, _mean_field))


def _run(program: Any, prepared: Prepared, chains: Chains) -> tuple[np.ndarray, ...]:
    """Calls a program with the batch filled up to a power of two, and cuts the results back."""
    num_chains = len(chains.visible)
    clamp = np.zeros(chains.visible.shape, bool) if chains.clamp is None else chains.clamp
    arrays: list[np.ndarray] = [*chains[:-1], clamp]
    batch_size = 1 << max(num_chains - 1, 0).bit_length()
    # `resize` repeats real chains: every number in the filling is valid, and it takes no longer than they do.
    batch = Chains(*(np.resize(array, (batch_size, *array.shape[1:])) for array in arrays))
    return tuple(np.array(result)[:num_chains] for result in program(prepared, batch))


@tf.function(jit_compile=True)
def _gibbs(model: Prepared, chains: Chains) -> tuple[tf.Tensor, tf.Tensor]:
    """Advances one batch; see `TensorFlowEngine.advance`."""
    visible = tf.transpose(tf.cast(chains.visible, tf.float32))
    may_change = ~tf.transpose(chains.clamp)
    hidden = tf.zeros([model.weights.shape[1], visible.shape[1]])
    logits = tf.zeros_like(visible)
    done, most = _zero_and_most(chains.num_steps)
    while done < most:
        moving, step = done < chains.num_steps, chains.first_step + done
        hidden_logits = (model.weights_transposed @ visible + model.hidden_bias) / chains.temperature
        hidden = tf.where(moving, _draw(hidden_logits, chains.seeds, step, HIDDEN_LAYER), hidden)
        # Where a chain stands still, `hidden` is that of its last step, and so are these logits.
        logits = (model.weights @ hidden + model.visible_bias) / chains.temperature
        visible = tf.where(moving & may_change, _draw(logits, chains.seeds, step, VISIBLE_LAYER), visible)
        done += 1
    probs = tf.where(chains.num_steps > 0, tf.sigmoid(logits), visible)
    return tf.cast(tf.transpose(visible), tf.uint8), tf.transpose(probs)


@tf.function(jit_compile=True)
def _mean_field(model: Prepared, chains: Chains) -> tuple[tf.Tensor]:
    """Advances one batch of probabilities; see `TensorFlowEngine.advance_mean_field`."""
    visible = tf.transpose(chains.visible)
    may_change = ~tf.transpose(chains.clamp)
    done, most = _zero_and_most(chains.num_steps)
    while done < most:
        moving = done < chains.num_steps
        hidden = tf.sigmoid((model.weights_transposed @ visible + model.hidden_bias) / chains.temperature)
        probs = tf.sigmoid((model.weights @ hidden + model.visible_bias) / chains.temperature)
        visible = tf.where(moving & may_change, probs, visible)
        done += 1
    return (tf.transpose(visible),)


def _zero_and_most(num_steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The counter of a loop and its end. Not `tf.range`: XLA compiles a program anew for each length of a range."""
    return tf.zeros([], num_steps.dtype), tf.reduce_max(num_steps)


def _draw(logits: tf.Tensor, seeds: tf.Tensor, step: tf.Tensor, layer: int) -> tf.Tensor:
    """New states of a layer, float32 0 or 1 [units, chains]: 1 where u < sigmoid(x), as u + u exp(-x) < 1.

    In this form nothing is lost at either end: exp(-x) may overflow (then the unit is off) or vanish (then it is on,
    because u stays below 1), so logits of +-100 decide alone.
    """
    uniforms = _uniforms(seeds, step, layer, logits.shape[0])
    return tf.cast(uniforms + uniforms * tf.exp(-logits) < 1.0, tf.float32)


def _uniforms(seeds: tf.Tensor, step: tf.Tensor, layer: int, num_units: int) -> tf.Tensor:
    """The noise of `randomness.uniforms`, rounded to float32 below 1; [units, chains]."""
    counter = (tf.cast(step, tf.uint64) * _word(2) + _word(layer + 1)) * _word(GAMMA)
    keys = _mix(seeds + counter)
    counters = tf.constant(np.arange(1, (num_units + 1) // 2 + 1, dtype=np.uint64) * np.uint64(GAMMA))
    words = _mix(keys + counters[:, None])
    # Unit 2n takes the low half, 2n + 1 the high one. The lowest bit of a half is dropped: processors turn signed
    # 32-bit integers into floats, but few turn unsigned ones.
    halves = tf.stack([_shift(words, 1), _shift(words, 33)], axis=1)
    integers = tf.cast(tf.bitwise.bitwise_and(halves, _word(0x7FFFFFFF)), tf.int32)
    uniforms = tf.cast(integers, tf.float32) * 2.0**-31 + 2.0**-32
    return tf.reshape(tf.minimum(uniforms, _LARGEST_BELOW_ONE), [-1, seeds.shape[0]])[:num_units]


def _mix(state: tf.Tensor) -> tf.Tensor:
    """`randomness.mix` on uint64 tensors."""
    state = tf.bitwise.bitwise_xor(state, _shift(state, 30)) * _word(MIX_1)
    state = tf.bitwise.bitwise_xor(state, _shift(state, 27)) * _word(MIX_2)
    return tf.bitwise.bitwise_xor(state, _shift(state, 31))


def _shift(words: tf.Tensor, num_bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(words, _word(num_bits))


def _word(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint64)
