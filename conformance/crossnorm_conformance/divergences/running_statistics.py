"""Running statistics: which estimator is stored, what moves it, when it is used, and what ruins it."""

import numpy as np

from . import divergence
from ._child import on_backend
from ._peers import eqx, jax, jnp, keras, nnx, onnx_model, run_onnxruntime, run_reference, tf, torch
from ._sightings import array, between, lost, near, normal, normalized, raises, same, worst


def _keras_layer(**arguments):
    return keras.layers.BatchNormalization(**arguments)


def _flax_layer(channels, **arguments):
    return nnx.BatchNorm(channels, use_running_average=False, rngs=nnx.Rngs(0), **arguments)


@divergence(
    1,
    "batch_norm",
    ("torch", "keras", "flax", "onnx", "onnxruntime"),
    "torch stores the unbiased variance of a batch, Keras, flax and ONNX the biased one: copied weights infer alike, but "
    "training that goes on after a migration drifts.",
    link="https://github.com/pytorch/pytorch/issues/1410",
)
def running_variance_estimator():
    x = normal(8, 3)
    biased = x.var(0)
    layer = torch.nn.BatchNorm1d(3, momentum=1.0)
    layer(torch.tensor(x))
    yield near("stored / biased variance of 8 values: torch", array(layer.running_var) / biased, 8 / 7)
    layer = _keras_layer(momentum=0.0)
    layer(x, training=True)
    yield near("keras", array(layer.moving_variance) / biased, 1)
    layer = _flax_layer(3, momentum=0.0)
    layer(x)
    yield near("flax", array(layer.var[...]) / biased, 1)
    ones, zeros = np.ones(3, "float32"), np.zeros(3, "float32")
    feeds = {"x": x, "scale": ones, "bias": zeros, "mean": zeros, "variance": ones}
    model = onnx_model("BatchNormalization", feeds, outputs=3, opset=15, momentum=0.0, training_mode=1)
    yield near("ONNX reference", run_reference(model, feeds)[2] / biased, 1)
    yield near("onnxruntime", run_onnxruntime(model, feeds)[2] / biased, 1)


@divergence(
    2,
    "batch_norm",
    ("torch", "keras"),
    "With batches of two, torch's running variance becomes twice that of Keras on the same data, and the outputs in inference "
    "are 41 % larger in Keras.",
)
def small_batches():
    batches = normal(100, 2, 3, spread=2.0)
    torch_layer, keras_layer = torch.nn.BatchNorm1d(3, momentum=0.1), _keras_layer(epsilon=1e-5, momentum=0.9)
    for batch in batches:
        torch_layer(torch.tensor(batch))
        keras_layer(batch, training=True)
    # What is left of the initial value of one is the same in both.
    left = 0.9 ** len(batches)
    variances = (array(torch_layer.running_var), array(keras_layer.moving_variance))
    yield near("running variance, torch / keras", (variances[0] - left) / (variances[1] - left), 2, within=1e-4)
    probe = normal(64, 3, spread=2.0)
    outputs = torch_layer.eval()(torch.tensor(probe)), keras_layer(probe, training=False)
    spreads = [array(output).std(0) for output in outputs]
    yield near("spread of the output in inference, keras / torch", spreads[1] / spreads[0], np.sqrt(2), within=1e-3)


@divergence(
    3,
    "batch_norm",
    ("keras", "tensorflow"),
    "TensorFlow's fused kernel, which tf.keras 2 used for images, stores the unbiased variance, and Keras 3 the biased one: "
    "the convention changed under the same layer name.",
)
def fused_kernel_estimator():
    x = normal(2, 2, 2, 3)
    biased = x.var((0, 1, 2))
    fused = tf.raw_ops.FusedBatchNormV3(x=x, scale=tf.ones(3), offset=tf.zeros(3), mean=[], variance=[], is_training=True)
    yield near("stored / biased variance of 8 values: fused kernel", array(fused.batch_variance) / biased, 8 / 7)
    layer = _keras_layer(momentum=0.0)
    layer(x, training=True)
    yield near("keras", array(layer.moving_variance) / biased, 1)


@divergence(
    4,
    "batch_norm",
    ("torch", "keras"),
    "momentum is the weight of the new value in torch and of the old one in Keras: momentum=0.99, ported as it stands, makes "
    "torch remember nothing but the last batch.",
)
def momentum_orientation():
    x = normal(8, 3, mean=5.0)
    layer = torch.nn.BatchNorm1d(3, momentum=0.99)
    layer(torch.tensor(x))
    yield near("momentum 0.99, one step towards the batch's mean: torch", array(layer.running_mean) / x.mean(0), 0.99)
    layer = _keras_layer(momentum=0.99)
    layer(x, training=True)
    yield near("keras", array(layer.moving_mean) / x.mean(0), 0.01)


@divergence(
    5,
    "instance_norm",
    ("torch",),
    "momentum=None is a cumulative average in torch's batch norm, but in its instance norm with running statistics it never "
    "updates them, so that inference divides by one.",
)
def momentum_none():
    batches = normal(4, 8, 3, 5, mean=2.0)
    batch, instance = (
        kind(3, momentum=None, track_running_stats=True) for kind in (torch.nn.BatchNorm1d, torch.nn.InstanceNorm1d)
    )
    for x in map(torch.tensor, batches):
        batch(x)
        instance(x)
    yield near("batch norm, mean / average of four batches", array(batch.running_mean) / batches.mean((0, 1, 3)), 1)
    yield same("instance norm, mean", instance.running_mean.tolist(), [0.0] * 3)
    yield same("variance", instance.running_var.tolist(), [1.0] * 3)
    yield same("batches counted", int(instance.num_batches_tracked), 0)


@divergence(
    6,
    "instance_norm",
    ("torch", "keras"),
    "torch's instance norm with running statistics stores the mean of the instances' unbiased variances and infers with it, "
    "so that training and inference differ; Keras has no running statistics there, and a port of such a checkpoint is wrong.",
)
def tracked_instance_norm():
    x = normal(4, 3, 3, 3, spread=3.0) + 2 * np.arange(4, dtype="float32").reshape(4, 1, 1, 1)
    layer = torch.nn.InstanceNorm2d(3, momentum=1.0, track_running_stats=True)
    trained = array(layer(torch.tensor(x)))
    stored, pooled = array(layer.running_var), x.var((0, 2, 3), ddof=1)
    yield near("torch, stored / mean of unbiased variances", stored / x.var((2, 3), ddof=1).mean(0), 1)
    yield between("pooled / stored", (pooled / stored).mean(), 1.2, 10)
    yield between("inference against training", worst(layer.eval()(torch.tensor(x)), trained), 0.5, 10)
    layer = keras.layers.GroupNormalization(groups=-1, axis=1)
    yield near("keras", worst(layer(x, training=True), layer(x, training=False)), 0)


@divergence(
    7,
    "batch_norm",
    ("torch", "keras"),
    "A batch norm that is just called trains in torch and infers in Keras: a training loop of one's own, ported from torch, "
    "never moves the statistics.",
)
def default_mode():
    x = normal(8, 3, mean=5.0)
    layer = torch.nn.BatchNorm1d(3, momentum=1.0)
    yield near("torch, output's mean", array(layer(torch.tensor(x))).mean(0), 0)
    yield near("running / batch mean", array(layer.running_mean) / x.mean(0), 1)
    layer = _keras_layer(momentum=0.0)
    yield near("keras, output / input", array(layer(x)) / x, 1 / np.sqrt(1 + 1e-3))
    yield near("moving mean", array(layer.moving_mean), 0)


@divergence(
    8,
    "batch_norm",
    ("torch", "keras"),
    "trainable=False turns a Keras batch norm to inference, even with training=True; requires_grad_(False) leaves torch's in "
    "training, and its statistics move on: one recipe of fine-tuning does two things.",
    link="https://github.com/pytorch/pytorch/issues/66073",
)
def freezing():
    x = normal(8, 3, mean=5.0)
    layer = _keras_layer(momentum=0.0)
    layer.trainable = False
    yield near("keras, output / input", array(layer(x, training=True)) / x, 1 / np.sqrt(1 + 1e-3))
    yield near("moving mean", array(layer.moving_mean), 0)
    layer = torch.nn.BatchNorm1d(3, momentum=1.0).requires_grad_(False)
    yield near("torch, output's mean", array(layer(torch.tensor(x))).mean(0), 0)
    yield near("running / batch mean", array(layer.running_mean) / x.mean(0), 1)


@divergence(
    9,
    "batch_norm",
    ("keras",),
    "trainable=False after a call of fit freezes nothing until compile is called again, and before the first fit it does: the "
    "moving statistics go on in silence.",
)
def freezing_after_fit():
    x = normal(8, 3, mean=5.0)

    def model_of(layer):
        model = keras.Sequential([keras.Input((3,)), layer])
        model.compile(optimizer="sgd", loss="mse")
        return model

    def moved_by_fit(model):
        before = array(model.layers[0].moving_mean)
        model.fit(x, x, batch_size=8, verbose=0)
        return worst(model.layers[0].moving_mean, before)

    yield near(
        "frozen before the first fit, the moving mean moves by", moved_by_fit(model_of(_keras_layer(trainable=False))), 0
    )
    model = model_of(_keras_layer(momentum=0.5))
    model.fit(x, x, batch_size=8, verbose=0)
    model.layers[0].trainable = False
    yield between("frozen after it, by", moved_by_fit(model), 0.5, 5)
    model.compile(optimizer="sgd", loss="mse")
    yield near("compiled again, by", moved_by_fit(model), 0)


@divergence(
    10,
    "batch_norm",
    ("torch",),
    "track_running_stats=False, set on a trained torch layer, changes nothing in inference: the old statistics are used, "
    "where a layer built that way uses the batch's.",
)
def tracking_switched_off_later():
    x = torch.tensor(normal(8, 3, mean=5.0))
    layer = torch.nn.BatchNorm1d(3)
    layer(x)
    before = array(layer.eval()(x))
    layer.track_running_stats = False
    yield near("set later, inference moves by", worst(layer(x), before), 0)
    built = torch.nn.BatchNorm1d(3, track_running_stats=False).eval()
    yield near("built so, output's mean", array(built(x)).mean(0), 0)
    yield between("set later, output's mean", array(layer(x)).mean(), 0.5, 10)


@divergence(
    11,
    "batch_norm",
    ("torch", "keras", "flax"),
    "One value per channel is an error in torch's training; Keras and flax return the offset and average a variance of zero "
    "in: the last, incomplete batch stops one and lowers the others' variance.",
)
def one_value_per_channel():
    x = normal(1, 3)
    yield raises("torch", ValueError, lambda: torch.nn.BatchNorm1d(3)(torch.tensor(x)))
    layer = _keras_layer(momentum=0.5)
    yield near("keras, output", array(layer(x, training=True)), 0)
    yield near("moving variance after 1", array(layer.moving_variance), 0.5)
    layer = _flax_layer(3, momentum=0.5)
    yield near("flax, output", array(layer(x)), 0)
    yield near("variance after 1", array(layer.var[...]), 0.5)


@divergence(
    12,
    "batch_norm",
    ("torch", "keras", "flax", "tensorflow"),
    "An empty batch in training leaves torch's batch norm as it was; torch's instance norm, Keras, flax and TensorFlow's "
    "fused kernel get NaN statistics for good: filtered batches poison them.",
)
def empty_batch():
    images = np.zeros((0, 3, 2, 2), "float32")
    batch = torch.nn.BatchNorm2d(3)
    batch(torch.tensor(images))
    yield near("running variance after 1: torch's batch norm", array(batch.running_var), 1)
    yield same("batches counted", int(batch.num_batches_tracked), 1)
    instance = torch.nn.InstanceNorm2d(3, track_running_stats=True)
    instance(torch.tensor(images))
    yield lost("its instance norm", instance.running_var)
    rows = np.zeros((0, 3), "float32")
    layer = _keras_layer()
    layer(rows, training=True)
    layer(normal(8, 3), training=True)
    yield lost("keras, a good batch later", layer.moving_variance)
    layer = _flax_layer(3)
    layer(rows)
    layer(normal(8, 3))
    yield lost("flax, a good batch later", layer.var[...])
    fused = tf.raw_ops.FusedBatchNormV3(
        x=np.zeros((0, 2, 2, 3), "float32"), scale=tf.ones(3), offset=tf.zeros(3), mean=[], variance=[], is_training=True
    )
    yield lost("fused kernel", fused.batch_variance)


@divergence(
    13,
    "batch_norm",
    ("torch", "keras", "flax"),
    "One NaN or infinity in training makes the running statistics NaN for ever, in torch, Keras and flax alike: training "
    "looks right again with the next batch, and inference is dead.",
)
def one_bad_sample():
    good, bad = normal(8, 3), normal(8, 3)
    bad[0] = np.nan, np.inf, np.nan
    layer = torch.nn.BatchNorm1d(3)
    layer(torch.tensor(bad))
    after = array(layer(torch.tensor(good)))
    yield near("torch, mean of the next output", after.mean(0), 0)
    yield lost("running variance", layer.running_var)
    layer = _keras_layer()
    layer(bad, training=True)
    layer(good, training=True)
    yield lost("keras", layer.moving_variance)
    layer = _flax_layer(3)
    layer(bad)
    layer(good)
    yield lost("flax", layer.var[...])


@divergence(
    14,
    "batch_norm",
    ("torch", "keras"),
    "Statistics stored in float16 overflow above 65504, by .half() in torch and by dtype='float16' in Keras, and inference "
    "returns the offset alone; the policy mixed_float16 keeps them in float32.",
)
def half_precision_statistics():
    x = normal(64, 3, spread=400.0)
    layer = torch.nn.BatchNorm1d(3, momentum=1.0).half()
    half = torch.tensor(x).half()
    layer(half)
    yield near("torch, running variance", layer.running_var, np.inf)
    yield near("output", array(layer.eval()(half)), 0)
    layer = _keras_layer(momentum=0.0, dtype="float16")
    layer(x, training=True)
    yield near("keras, moving variance", layer.moving_variance, np.inf)
    yield near("output", array(layer(x, training=False)), 0)
    layer = _keras_layer(momentum=0.0, dtype="mixed_float16")
    layer(x, training=True)
    yield near("mixed_float16, moving / batch variance", array(layer.moving_variance) / x.var(0), 1, within=1e-2)


@divergence(
    15,
    "batch_norm",
    ("equinox",),
    "Equinox's batch norm in the mode 'batch' corrects the start of an average that began at one as if it had begun at zero: "
    "with a true variance of 4 it infers with about 103 after the first step.",
)
def equinox_debiasing():
    x = normal(64, 3, spread=2.0)
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, axis_name="batch", mode="batch", channelwise_affine=False)
    call = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    _, state = call(jnp.asarray(x), state)
    call = jax.vmap(eqx.nn.inference_mode(layer), axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    outputs, _ = call(jnp.asarray(x), state)
    # The variance that inference used, from the spread of its outputs.
    used = x.var(0) / array(outputs).var(0)
    yield between("true variance", x.var(), 3, 5)
    yield near("variance used", used, (0.99 + 0.01 * x.var(0)) / 0.01, within=1e-3)


@divergence(
    16,
    "batch_norm",
    ("keras", "tensorflow"),
    "Keras' synchronized batch norm takes the statistics of its own replica alone as soon as there is a mask: distributed "
    "training of masked sequences loses the synchronization in silence.",
)
def synchronized_with_mask():
    seen = on_backend("tensorflow")["synchronized"]
    plain, masked = seen["without a mask"], seen["with a mask"]
    yield near("error of the output against statistics of both replicas: without a mask", plain["global"], 0, within=1e-4)
    yield between("with a mask", masked["global"], 0.5, 10)
    yield near("with a mask, against its own replica's", masked["local"], 0, within=1e-4)


@divergence(
    17,
    "batch_norm",
    ("torch",),
    "torch's SyncBatchNorm refuses a CPU tensor as soon as there is a process group, and is a plain batch norm without one: "
    "its synchronization cannot be tested without a GPU.",
)
def synchronized_on_the_cpu():
    distributed = torch.distributed
    x = torch.tensor(normal(8, 3))
    layer = torch.nn.SyncBatchNorm(3)
    yield near("without a process group, error against batch norm", worst(layer(x), torch.nn.BatchNorm1d(3)(x)), 0)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield raises("with one", ValueError, lambda: layer(x))
    finally:
        distributed.destroy_process_group()


@divergence(
    74,
    "batch_renorm",
    ("keras",),
    "Keras' batch renormalization starts without bounds on r and d: with default arguments the first steps normalize nothing, "
    "where the paper starts at r = 1, d = 0, which is plain batch normalization.",
)
def renormalization_without_bounds():
    x = normal(8, 3, mean=5.0, spread=3.0)
    free = _keras_layer(renorm=True)
    yield near("output / input", array(free(x, training=True)) / x, 1)
    bounded = _keras_layer(renorm=True, renorm_clipping={"rmin": 1.0, "rmax": 1.0, "dmax": 0.0})
    error = worst(bounded(x, training=True), normalized(x, (0,), 1e-3))
    yield near("bounded as the paper starts, error against batch norm", error, 0)
