"""Mutants of the TensorFlow layers: what a careless author would write."""

import keras
import tensorflow as tf

from tests.conformance.mutants import Table

MUTANTS = mutant = Table("crossnorm-tensorflow")

ROOM = "crossnorm.tensorflow"
STATISTICS = "running_mean running_variance"


def gradient_of(values):
    """What has the gradient of ``values`` and is 0."""
    return values - tf.stop_gradient(values)


# The statistics of a group, and the denominator.


def textbook(x, scale, offset, axes, eps, *, centered, subtract_mean, average=tf.reduce_mean, constant="", root=tf.math.rsqrt):
    """`standardize_rows` as textbooks have it; what is ``constant`` has no gradient."""

    def found(name, values):
        values = average(values, axes, keepdims=True)
        return tf.stop_gradient(values) if name == constant else values

    mean = found("mean", x)
    variance = found("variance", tf.square(x - mean if centered else x))
    y = (x - mean if subtract_mean else x) * root(variance + eps)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    y = y if scale is None else y * tf.reshape(scale, shape)
    return y if offset is None else y + tf.reshape(offset, shape)


@mutant("layer_norm", "dx", replaces=f"{ROOM}.layer_norm:standardize_rows")
def mean_is_no_constant(original, *arrays, **how):
    return textbook(*arrays, **how, constant="mean")


@mutant("rms_norm", "dx", replaces=f"{ROOM}.rms_norm:standardize_rows")
def root_is_no_constant(original, *arrays, **how):
    return textbook(*arrays, **how, constant="variance")


@mutant("layer_norm", "y", "dx dscale", replaces=f"{ROOM}.layer_norm:standardize_rows")
def eps_outside_the_root(original, *arrays, **how):
    *rest, eps = arrays
    return textbook(*rest, 1e-37, **how, root=lambda variance: 1 / (tf.sqrt(variance) + eps))


@mutant("rms_norm", "y", "dx dscale", replaces=f"{ROOM}.rms_norm:standardize_rows")
def eps_forgotten(original, *arrays, **how):
    return original(*arrays[:-1], 0.0, **how)


@mutant("layer_norm", "y", "dx dscale", replaces=f"{ROOM}.layer_norm:standardize_rows")
def one_axis_too_few(original, *arrays, **how):
    return textbook(*arrays, **how, average=lambda values, axes, keepdims: tf.reduce_mean(values, axes[:1], keepdims))


@mutant("layer_norm", "y", "dx dscale", replaces=f"{ROOM}.layer_norm:standardize_rows")
def numerator_keeps_the_mean(original, *arrays, subtract_mean, **how):
    return original(*arrays, **how, subtract_mean=False)


@mutant("rms_norm", "y", "dx dscale", replaces=f"{ROOM}.rms_norm:widened")
def squares_in_the_dtype_of_the_input(original, x):
    return x


@mutant("group_norm", "y", "dx dscale", replaces=f"{ROOM}.group_norm:standardize_channels")
def one_group(original, view, scale, offset, groups, eps):
    return original(view, scale, offset, 1, eps)


@mutant("group_norm", "y", "dx dscale", replaces=f"{ROOM}.group_norm:standardize_channels")
def groups_interleaved(original, view, scale, offset, groups, eps):
    order = [channel for group in range(groups) for channel in range(group, view.shape[2], groups)]
    back = [order.index(channel) for channel in range(view.shape[2])]
    pick = lambda values, axis=0: None if values is None else tf.gather(values, order, axis=axis)  # noqa: E731
    y, statistics = original(pick(view, 2), pick(scale), pick(offset), groups, eps)
    return tf.gather(y, back, axis=2), statistics


@mutant("instance_norm", "y", f"dx dscale {STATISTICS}", replaces=f"{ROOM}.instance_norm:channel_view")
def channels_first_read_as_channels_last(original, x, axis, instances):
    view = original(x, axis, instances)
    sizes = tf.shape(view)
    last = tf.reshape(view, [sizes[0], sizes[1], -1, view.shape[2]])
    return tf.reshape(tf.transpose(last, [0, 1, 3, 2]), sizes)


@mutant("instance_norm", "y", "dscale doffset", replaces=f"{ROOM}.instance_norm:standardize_channels")
def offset_before_scale(original, view, scale, offset, *rest):
    if scale is None or offset is None:
        return original(view, scale, offset, *rest)
    y, statistics = original(view, None, None, *rest)
    shape = [1, 1, -1, 1]
    return (y + tf.reshape(offset, shape)) * tf.reshape(scale, shape), statistics


@mutant("batch_norm", "dscale", replaces=f"{ROOM}._batch:standardize_channels")
def scale_gradient_of_the_raw_input(original, view, scale, offset, *rest):
    y, statistics = original(view, scale, offset, *rest)
    if scale is None:
        return y, statistics
    xhat = (view - statistics.mean) * tf.math.rsqrt(statistics.variance + rest[1])
    return y + gradient_of(tf.reshape(scale, [1, 1, -1, 1])) * tf.stop_gradient(view - xhat), statistics


@mutant("batch_norm", "y", "dx dscale", replaces=f"{ROOM}._batch:optional")
def scale_of_the_next_channel(original, parameters, dtype):
    scale, offset = original(parameters, dtype)
    return scale if scale is None else tf.roll(scale, 1, 0), offset


# The running statistics.


@mutant("batch_norm", "running_mean", "running_variance y", replaces=f"{ROOM}._base:old_and_new_weight")
def momentum_the_other_way_round(original, decay, batches, dtype):
    return original(decay, batches, dtype)[::-1]


@mutant("batch_norm", "running_mean", "running_variance y", replaces=f"{ROOM}._base:old_and_new_weight")
def cumulative_average_off_by_one(original, decay, batches, dtype):
    return original(decay, batches + 1, dtype)


@mutant("batch_norm", "running_variance", "y", replaces=f"{ROOM}._base:unbiased_variance")
def biased_variance_stored(original, variance, count):
    return variance


@mutant("batch_norm", "running_mean", "running_variance y dx", replaces=f"{ROOM}._base:ChannelLayer._mode")
def updated_while_frozen(original, layer, training):
    trainable, layer._trainable = layer._trainable, True
    mode = original(layer, training)
    layer._trainable = trainable
    return mode


@mutant(
    "batch_norm", "running_mean", "running_variance batches_tracked y dx dscale", replaces=f"{ROOM}._base:ChannelLayer._mode"
)
def always_in_training(original, layer, training):
    return original(layer, True)


@mutant("batch_norm", "y", f"{STATISTICS} batches_tracked dx dscale", replaces=f"{ROOM}._base:ChannelLayer._mode")
def always_in_inference(original, layer, training):
    return original(layer, False)


@mutant("batch_norm", "running_mean", "running_variance batches_tracked y", replaces=f"{ROOM}._base:ChannelLayer._assign")
def new_state_dropped(original, layer, state):
    return None


@mutant("instance_norm", "running_mean", "running_variance y", replaces=f"{ROOM}._base:ChannelLayer._assign")
def stored_in_half(original, layer, state):
    half = {name: tf.cast(tf.cast(v, tf.bfloat16), v.dtype) if v.dtype.is_floating else v for name, v in state.items()}
    original(layer, half)


@mutant("instance_norm", "running_mean", "running_variance y", replaces=f"{ROOM}.instance_norm:update_running")
def statistics_of_the_last_batch_only(original, spec, *rest):
    return original(spec.replace(decay=0.0), *rest)


@mutant("batch_norm", "batches_tracked", "running_mean running_variance y", replaces=f"{ROOM}._base:blended")
def not_counted(original, old, batch, decay):
    return original(old, batch, decay) | {"batches_tracked": old["batches_tracked"]}


# Batch renormalization.

RENORM = f"{ROOM}.batch_renorm"
RENORM_STATE = "running_variance renorm_mean renorm_standard_deviation running_standard_deviation"


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:_bounds")
def schedule_ignored(original, spec, batches):
    return original(spec.replace(r_max_steps=None, d_max_steps=None), batches)


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:_bounds")
def r_clipped_from_above_only(original, spec, batches):
    return tf.zeros((), tf.float64), *original(spec, batches)[1:]


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:_reference_point")
def r_and_d_from_the_pair_of_inference(original, spec, state, like):
    if spec.renorm_decay is None:
        return original(spec, state, like)
    pair = {name.replace("running", "renorm"): value for name, value in state.items() if name.startswith("running")}
    return original(spec, {**state, **pair}, like)


@mutant("batch_renorm", "running_standard_deviation", f"y dx dscale {RENORM_STATE}", replaces=f"{RENORM}:_kept")
def deviation_stored_without_eps(original, spec, batch, count):
    return original(spec.replace(eps=0.0), batch, count)


# Switchable and filter response normalization.


@mutant("switchable_norm", "y", "dx dscale dmean_logits dvariance_logits", replaces=f"{ROOM}.switchable_norm:mix")
def one_softmax_for_both(original, spec, positions, instances, parameters, running):
    shared = parameters["mean_logits"] + 0 * parameters["variance_logits"]
    return original(spec, positions, instances, {**parameters, "variance_logits": shared}, running)


@mutant("switchable_norm", "dmean_logits", "dvariance_logits", replaces=f"{ROOM}._mixture:_mixture")
def gradient_of_the_weights_taken_for_that_of_the_logits(original, logits, *statistics):
    weights = tf.stop_gradient(tf.nn.softmax(logits)) + gradient_of(logits)
    return tf.add_n([weights[i] * statistic for i, statistic in enumerate(statistics)])


@mutant("filter_response_norm", "y", "dthreshold", replaces=f"{ROOM}.filter_response_norm:threshold_channels")
def threshold_subtracted(original, x, scale, offset, eps, learned_eps, threshold):
    if threshold is None:
        return original(x, scale, offset, eps, learned_eps, threshold)
    return tf.nn.relu(original(x, scale, offset, eps, learned_eps, None) - threshold)


@mutant("filter_response_norm", "dlearned_eps", replaces=f"{ROOM}.filter_response_norm:threshold_channels")
def sign_of_the_learned_eps_lost_in_its_gradient(original, x, scale, offset, eps, learned_eps, threshold):
    if learned_eps is not None:
        learned_eps = learned_eps + tf.stop_gradient(tf.abs(learned_eps) - learned_eps)
    return original(x, scale, offset, eps, learned_eps, threshold)


# Weights.

WEIGHT = "y dx dweight dscale"


@mutant("weight_standardization", "effective_weight", WEIGHT, replaces=f"{ROOM}.weight_standardization:centred")
def mean_of_the_whole_weight(original, rows, axes):
    return original(rows, (0, 1, 2))


@mutant("weight_standardization", "dweight", replaces=f"{ROOM}.weight_standardization:norm")
def deviation_is_no_constant(original, values, axes):
    return tf.stop_gradient(original(values, axes))


@mutant("weight_norm", "effective_weight", WEIGHT, replaces=f"{ROOM}.weight_norm:_norm")
def norm_over_the_whole(original, spec, rows):
    return original(spec.replace(norm_over="whole"), rows)


@mutant("weight_norm", "dweight", replaces=f"{ROOM}.weight_norm:_norm")
def length_is_no_constant(original, spec, rows):
    return tf.stop_gradient(original(spec, rows))


@mutant("spectral_norm", "u", "v effective_weight y dx dweight", replaces=f"{ROOM}.spectral_norm:_singular_vectors")
def never_iterated(original, spec, rows, state, iterations):
    return original(spec, rows, state, 0)


@mutant("spectral_norm", "dweight", replaces=f"{ROOM}.spectral_norm:_times_columns")
def sigma_is_no_constant(original, rows, v):
    return original(tf.stop_gradient(rows), v)


@mutant("spectral_norm", "u", "v effective_weight y dx dweight", replaces=f"{ROOM}._weight:WeightWrapper._effective")
def state_dropped(original, wrapper, kernel, mode, **given):
    return original(wrapper, kernel, mode, **given)[0], {}


# Bad input.


@mutant("batch_norm", "state", replaces=f"{ROOM}._base:SpecLayer._assert_input_compatibility")
def state_changed_before_the_error(original, layer, inputs):
    layer.moving_mean.assign_add(tf.ones_like(layer.moving_mean))
    original(layer, inputs)


@mutant("group_norm", "exception", replaces=f"{ROOM}._base:SpecLayer._assert_input_compatibility")
def wrong_shape_left_to_keras(original, layer, inputs):
    keras.layers.Layer._assert_input_compatibility(layer, inputs)


@mutant("layer_norm", "exception", replaces="crossnorm.spec._base:NormSpec.__post_init__")
def any_eps_accepted(original, spec):
    return None
