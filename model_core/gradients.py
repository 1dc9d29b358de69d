"""The gradient of a training: the first-order loss, the centred gradient, and the rules that step along it.

The gradient of the mean log-likelihood is a difference of two averages (Ackley, Hinton and Sejnowski 1985; the
article calls the phases awake and asleep):

    d/dW = <v h'> under the data - <v h'> under the model           and likewise <v>, <h> for the biases

`first_order_loss` is a number whose derivative is just that, minus it, when the states are held constant: the mean
energy of the awake states less that of the asleep ones. TensorFlow differentiates it. (Its value is no likelihood,
and its second derivatives are wrong by design: it is for first-order rules only.)
"""

from __future__ import annotations

from typing import Any

from model_core.presets import Rule, Statistic
from model_core.quiet_tensorflow import tf


def phase_moments(awake_visible: Any, awake_hidden: Any, asleep_visible: Any, asleep_hidden: Any) -> list[Any]:
    """<v h'>, <v> and <h> of the awake states less those of the asleep ones; each mean over its own rows.

    States are float32 [rows, visible] and [rows, hidden]. `NumbaEngine.phase_moments` has the same for 0 or 1 pixels.
    """
    num_awake = tf.cast(tf.shape(awake_visible)[0], tf.float32)
    num_asleep = tf.cast(tf.shape(asleep_visible)[0], tf.float32)
    visible = tf.concat([awake_visible, asleep_visible], axis=0)
    # One product for both phases: the rows of each carry its sign and share.
    hidden = tf.concat([awake_hidden / num_awake, -asleep_hidden / num_asleep], axis=0)
    visible_change = tf.reduce_mean(awake_visible, axis=0) - tf.reduce_mean(asleep_visible, axis=0)
    return [tf.matmul(visible, hidden, transpose_a=True), visible_change, tf.reduce_sum(hidden, axis=0)]


def first_order_loss(
    params: list[Any], awake_visible: Any, awake_hidden: Any, asleep_visible: Any, asleep_hidden: Any
) -> Any:
    """Mean energy of the awake states less that of the asleep ones, nats: E(v, h) is linear in the parameters.

    Minus its gradient is the gradient of the mean log-likelihood.
    """
    moments = phase_moments(awake_visible, awake_hidden, asleep_visible, asleep_hidden)
    return -sum(tf.reduce_sum(param * moment) for param, moment in zip(params, moments, strict=True))


def centred(gradient: list[Any], visible_offset: Any, hidden_offset: Any) -> list[Any]:
    """The gradient in centred coordinates, (v - offset) and (h - offset), expressed in the plain parameters.

    Melchior, Fischer and Wiskott 2016, "How to Center Deep Boltzmann Machines", equations 11 to 13: the offsets of
    the two phases cancel but for the rank-one terms below.
    """
    of_weights, of_visible, of_hidden = gradient
    of_weights -= tf.tensordot(visible_offset, of_hidden, 0) + tf.tensordot(of_visible, hidden_offset, 0)
    return [
        of_weights,
        of_visible - tf.linalg.matvec(of_weights, hidden_offset),
        of_hidden - tf.linalg.matvec(of_weights, visible_offset, transpose_a=True),
    ]


def make_slots(rule: Rule, variable: Any) -> list[Any]:
    """The variables that a rule remembers from one step to the next, zero at the start."""
    count = {"sgd": 0, "momentum": 1, "adam": 2}[rule]
    return [tf.Variable(tf.zeros_like(variable)) for _ in range(count)]


def ascend(rule: Rule, variable: Any, slots: list[Any], gradient: Any, rate: float, step: int, momentum: float) -> None:
    """One step of `variable` up the gradient, in place: SGD, momentum (Polyak 1964), or Adam (Kingma and Ba 2015).

    These are the operations that Keras's optimizers are made of: one pass over the memory, on any device. They descend,
    so the rate is handed over with the other sign. `step` counts from 1.
    """
    if rule == "sgd":
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=-rate, delta=gradient)
    elif rule == "momentum":
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle, accum=slots[0].handle, lr=-rate, grad=gradient, momentum=momentum
        )
    else:
        first, second = (slot.handle for slot in slots)
        beta1, beta2 = 0.9, 0.999
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=first, v=second, beta1_power=beta1**step, beta2_power=beta2**step,
            lr=-rate, beta1=beta1, beta2=beta2, epsilon=1e-7, grad=gradient,
        )  # fmt: skip


def statistic(probs: Any, kind: Statistic, seed: Any) -> Any:
    """What stands for the hidden units in an average: their probabilities, or states drawn from them."""
    if kind == "probs":
        return probs
    return tf.cast(tf.random.stateless_uniform(tf.shape(probs), seed) < probs, tf.float32)
