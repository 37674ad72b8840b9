"""A layer of this room against the reference, in rounding units."""

import numpy as np
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm import reference, rounding

GOAL, GOAL_PARAMETERS = 8, 32

REGIMES = {
    "plain": lambda x: x,
    "offset": lambda x: x + 4096,
    "constant": lambda x: np.where(np.arange(6) == 1, 3.7, x),
    "mixed": lambda x: (x + 1e3 * np.arange(6)) * 10.0 ** np.arange(-3, 3),
    "large": lambda x: x * 1e15,
}
POLICY = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
WEIGHTS = {"scale": ("gamma", "scale"), "offset": ("beta",), "learned_eps": ("learned_epsilon",), "threshold": ("tau",)}
WITH_MODES = ("batch_norm", "instance_norm", "batch_renorm", "switchable_norm")


def weight(layer, name):
    """The layer's weight that holds the specification's array ``name``."""
    keras_name = name.replace("running", "moving").replace("standard_deviation", "stddev")
    return next(w for w in layer.weights if w.name in WEIGHTS.get(name, (keras_name,)))


def to_tensor(values, dtype):
    return tf.cast(tf.constant(np.asarray(values, np.float64)), dtype)


def check(spec, to_layout, to_reference, axis, shape, dtype, regime, mode, graph, batches=0, prepare=None):
    """The layer of ``spec`` against the reference; three steps if it has a state, which runs through.

    ``batches``: how many it has seen before. ``prepare``: changes the arrays in place, once the input is known.
    """
    random = np.random.default_rng(len(shape) + len(dtype) + len(regime))
    accumulation, oracle = rounding.accumulation(dtype), rounding.oracle_dtype(dtype)
    layer = crossnorm.tensorflow.layer(spec, axis=axis, dtype=POLICY.get(dtype, dtype))
    layer.build(to_layout(np.zeros(shape)).shape)
    arrays = {a.name: random.uniform(0.5, 1.5, a.shape) for a in (*spec.parameters, *spec.state) if a.name != "batches_tracked"}
    arrays = {name: rounding.round_to(value, accumulation) for name, value in arrays.items()}
    if batches:
        layer.batches_tracked.assign(batches)
    parameters = {a.name for a in spec.parameters}
    training = {"training": mode == crossnorm.TRAIN} if spec.method in WITH_MODES else {}

    def step(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **training)
        return y, tape.gradient(y, [x, *(weight(layer, name).value for name in sorted(parameters))], upstream)

    step = tf.function(step) if graph else step
    for number in range(3 if spec.state and mode.update_running else 1):
        # The regimes shape the channels, which are the last normalized dimension where there are none.
        channel = 1 if hasattr(spec, "channels") else -1
        x = np.moveaxis(REGIMES[regime](np.moveaxis(random.normal(size=shape), channel, -1)), -1, channel)
        x = rounding.round_to(x, dtype)
        upstream = rounding.round_to(random.normal(size=shape), dtype)
        if prepare is not None:
            prepare(arrays, x)
        for name, value in arrays.items():
            weight(layer, name).assign(value)
        values = {name: np.asarray(value, oracle) for name, value in {**arrays, "x": x, "upstream": upstream}.items()}

        def evaluate(inputs, batches=batches):
            p = {name: inputs[name] for name in parameters}
            s = {a.name: inputs.get(a.name, np.asarray(batches)) for a in spec.state}
            forward = reference.forward(spec, inputs["x"], p, s, mode)
            backward = reference.backward(spec, inputs["x"], p, s, mode, inputs["upstream"])
            return {"y": forward.y, **{f"d{n}": q for n, q in backward.items()}, **forward.state}

        dtypes = {name: dtype if name in ("x", "upstream") else accumulation for name in values}
        stored = {name: dtype if name in ("y", "dx") else accumulation for name in evaluate(values)}
        exact, units = rounding.unit(evaluate, values, dtypes, stored, seed=number)
        y, (dx, *gradients) = step(to_tensor(to_layout(x), dtype), to_tensor(to_layout(upstream), dtype))
        assert y.dtype.name == dx.dtype.name == dtype
        got = {"y": to_reference(tf.cast(y, "float64").numpy()), "dx": to_reference(tf.cast(dx, "float64").numpy())}
        got |= {f"d{name}": gradient.numpy() for name, gradient in zip(sorted(parameters), gradients, strict=True)}
        got |= {a.name: weight(layer, a.name).numpy() for a in spec.state if a.name != "batches_tracked"}
        for name, value in got.items():
            worst = rounding.in_units(value, exact[name], units[name], stored[name]).max()
            goal = GOAL_PARAMETERS if name.removeprefix("d") in parameters else GOAL
            assert worst <= goal, f"step {number}, {name}: {worst} rounding units"
        arrays |= {a.name: got[a.name] for a in spec.state if a.name in got}
        batches += mode.update_running
    if getattr(layer, "batches_tracked", None) is not None:
        assert layer.batches_tracked.numpy() == batches


def check_channels(spec, shape, axis, dtype, regime, mode, graph=False, **more):
    """The same for a layer with the channels along ``axis``; ``shape`` has them after the batch."""

    def to_layout(x):
        return np.moveaxis(x, 1, axis)

    def to_reference(x):
        return np.moveaxis(x, axis, 1)

    check(spec, to_layout, to_reference, axis, shape, dtype, regime, mode, graph, **more)
