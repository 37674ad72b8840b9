"""The normalizations of activations, as each framework has them."""

from ._peer import EPS_UNNAMED, Argument, Peer, same

_TORCH_MOMENTUM = {"decay": Argument("momentum", complement=True)}
_KERAS_ARGUMENTS = same(eps="epsilon", scale="scale", offset="center")
_FLAX_ARGUMENTS = same(eps="epsilon", scale="use_scale", offset="use_bias")
_TORCH_HALF = "half inputs: statistics and arithmetic in float32, output in the input's dtype"
_KERAS_FLOAT32 = "mixed precision: computes in float32 with float32 parameters, output in the policy's compute dtype"
_FLAX_PROMOTE = "bfloat16 input with float32 parameters gives float32 output; fast variance E[x^2] - E[x]^2 by default"
_ONNX_STASH = "stash_type gives the dtype of the statistics, float32 by default"
_NO_EPS = "the paper has no eps: 0"

ACTIVATION_PEERS: dict[str, dict[str, Peer]] = {
    "batch_norm": {
        "torch": Peer(
            name="torch.nn.BatchNorm1d/2d/3d",
            arguments={
                **same(channels="num_features", eps="eps", scale="affine", offset="bias", tracked="track_running_stats"),
                **_TORCH_MOMENTUM,
            },
            fields={"eps": 1e-5, "decay": 0.9, "running_variance": "unbiased", "single_value": "raise"},
            notes=(
                "called without a mode it trains; eval() freezes the statistics, requires_grad=False does not",
                "affine=False drops the bias too, whatever bias= says",
                "an empty batch keeps the statistics and counts as one",
                _TORCH_HALF,
            ),
        ),
        "keras": Peer(
            name="keras.layers.BatchNormalization",
            arguments={**_KERAS_ARGUMENTS, "decay": Argument("momentum")},
            fields={"eps": 1e-3, "decay": 0.99, "running_variance": "biased", "single_value": "zero"},
            notes=(
                "called without training=True it is inference; trainable=False means inference too",
                "an empty batch turns the moving statistics into NaN for good",
                "mixed precision: the input is cast to the compute dtype before the statistics are taken",
                "takes a mask of the input's rank minus one; an all-masked batch moves the statistics towards 0",
            ),
        ),
        "tf_keras2": Peer(
            name="tf.keras 2 BatchNormalization (rank 4 or 5, fused)",
            arguments={**_KERAS_ARGUMENTS, "decay": Argument("momentum")},
            fields={"eps": 1e-3, "decay": 0.99, "running_variance": "unbiased", "single_value": "zero"},
            notes=("only ranks 4 and 5 take the fused kernel; other ranks, and renorm, store the biased variance",),
        ),
        "flax": Peer(
            name="flax.linen.BatchNorm, flax.nnx.BatchNorm",
            arguments={**_FLAX_ARGUMENTS, "decay": Argument("momentum")},
            fields={"eps": 1e-5, "decay": 0.99, "running_variance": "biased", "single_value": "zero"},
            notes=(_FLAX_PROMOTE, "an empty or all-masked batch turns the statistics into NaN"),
        ),
        "onnx": Peer(
            name="BatchNormalization-15",
            arguments={"eps": Argument("epsilon"), "decay": Argument("momentum")},
            fields={"eps": 1e-5, "decay": 0.9, "running_variance": "biased", "single_value": "zero"},
            notes=("scale and bias are required inputs; training_mode=0 by default",),
        ),
        "paper": Peer(
            name="Ioffe and Szegedy 2015, arXiv:1502.03167",
            fields={"eps": 1e-5, "decay": None, "running_variance": "unbiased", "single_value": "raise"},
            notes=(EPS_UNNAMED, "inference averages the unbiased variances of many batches: decay None"),
        ),
    },
    "layer_norm": {
        "torch": Peer(
            name="torch.nn.LayerNorm",
            arguments=same(shape="normalized_shape", eps="eps", scale="elementwise_affine", offset="bias"),
            fields={"eps": 1e-5},
            notes=("trailing dimensions only", "elementwise_affine=False drops the bias too", _TORCH_HALF),
        ),
        "keras": Peer(
            name="keras.layers.LayerNormalization",
            arguments=_KERAS_ARGUMENTS,
            fields={"eps": 1e-3},
            notes=(
                "any axes; gamma and beta have the sizes of the sorted axes",
                "rms_scaling=True (deprecated) is subtract_mean=False without beta",
                _KERAS_FLOAT32,
            ),
        ),
        "tf_keras2": Peer(
            name="tf.keras 2 LayerNormalization", arguments=_KERAS_ARGUMENTS, fields={"eps": 1e-3}, notes=("any axes",)
        ),
        "flax": Peer(
            name="flax.linen.LayerNorm, flax.nnx.LayerNorm",
            arguments=_FLAX_ARGUMENTS,
            fields={"eps": 1e-6},
            notes=(_FLAX_PROMOTE, "parameters on feature_axes only, also where more axes are reduced"),
        ),
        "equinox": Peer(
            name="equinox.nn.LayerNorm",
            arguments=same(shape="shape", eps="eps", scale="use_weight", offset="use_bias"),
            fields={"eps": 1e-5},
            notes=("the whole array of one sample; the batch is a vmap",),
        ),
        "onnx": Peer(
            name="LayerNormalization-17",
            arguments={"eps": Argument("epsilon")},
            fields={"eps": 1e-5},
            notes=("scale is a required input, bias an optional one; axes from `axis` to the end", _ONNX_STASH),
        ),
        "timm": Peer(
            name="timm.layers.LayerNorm, LayerNorm2d",
            arguments=same(shape="num_channels", eps="eps", scale="affine", offset="affine"),
            fields={"eps": 1e-6},
            notes=("affine is both or none", "LayerNorm2d normalises the channels at each position of an image"),
        ),
        "paper": Peer(name="Ba, Kiros and Hinton 2016, arXiv:1607.06450", fields={"eps": 0.0}, notes=(_NO_EPS,)),
    },
    "group_norm": {
        "torch": Peer(
            name="torch.nn.GroupNorm",
            arguments=same(channels="num_channels", groups="num_groups", eps="eps", scale="affine", offset="bias"),
            fields={"eps": 1e-5},
            notes=("one value per group raises for a batch of one only", "affine=False drops the bias too", _TORCH_HALF),
        ),
        "keras": Peer(
            name="keras.layers.GroupNormalization",
            arguments={**_KERAS_ARGUMENTS, "groups": Argument("groups")},
            fields={"eps": 1e-3, "groups": 32},
            notes=(
                "any channel axis; groups=-1 is instance normalization",
                "accepts an upstream mask and ignores it",
                _KERAS_FLOAT32,
            ),
        ),
        "tf_keras2": Peer(
            name="tf.keras 2 GroupNormalization",
            arguments={**_KERAS_ARGUMENTS, "groups": Argument("groups")},
            fields={"eps": 1e-3, "groups": 32},
        ),
        "tfa": Peer(
            name="tensorflow_addons GroupNormalization (archived)",
            arguments={**_KERAS_ARGUMENTS, "groups": Argument("groups")},
            fields={"eps": 1e-3, "groups": 32},
            notes=("groups=2 by default in old releases; groups=-1 is instance normalization",),
        ),
        "flax": Peer(
            name="flax.linen.GroupNorm, flax.nnx.GroupNorm",
            arguments={**_FLAX_ARGUMENTS, "groups": Argument("num_groups")},
            fields={"eps": 1e-6, "groups": 32},
            notes=(_FLAX_PROMOTE, "nnx with reduction_axes is silently wrong"),
        ),
        "equinox": Peer(
            name="equinox.nn.GroupNorm",
            arguments=same(
                channels="channels", groups="groups", eps="eps", scale="channelwise_affine", offset="channelwise_affine"
            ),
            fields={"eps": 1e-5},
            notes=("one sample, channels first; the batch is a vmap", "channelwise_affine is both or none"),
        ),
        "onnx": Peer(
            name="GroupNormalization-21",
            arguments={"eps": Argument("epsilon"), "groups": Argument("num_groups")},
            fields={"eps": 1e-5},
            notes=("opset 18 had one scale per group, opset 21 has one per channel", _ONNX_STASH),
        ),
        "timm": Peer(
            name="timm.layers.GroupNorm",
            arguments=same(channels="num_channels", groups="num_groups", eps="eps", scale="affine", offset="affine"),
            fields={"eps": 1e-5, "groups": 32},
            notes=("num_channels comes first, num_groups second: the reverse of torch", "affine is both or none"),
        ),
        "paper": Peer(name="Wu and He 2018, arXiv:1803.08494", fields={"eps": 1e-5, "groups": 32}, notes=(EPS_UNNAMED,)),
    },
    "instance_norm": {
        "torch": Peer(
            name="torch.nn.InstanceNorm1d/2d/3d",
            arguments={
                **same(channels="num_features", eps="eps", scale="affine", tracked="track_running_stats"),
                "offset": Argument("bias", written="True (with affine)"),
                **_TORCH_MOMENTUM,
            },
            fields={
                "eps": 1e-5,
                "scale": False,
                "offset": False,
                "decay": 0.9,
                "running_variance": "instance_mean_unbiased",
                "single_value": "raise",
            },
            notes=(
                "momentum=None never updates (decay 1); the counter exists and never counts",
                "rank 2 or 3 without a batch is accepted: (channels, length) is read as one sample",
                _TORCH_HALF,
            ),
        ),
        "keras": Peer(
            name="keras.layers.GroupNormalization(groups=-1)",
            arguments=_KERAS_ARGUMENTS,
            fields={"eps": 1e-3, "single_value": "zero"},
            notes=("no layer of its own, no running statistics", _KERAS_FLOAT32),
        ),
        "tfa": Peer(
            name="tensorflow_addons InstanceNormalization (archived)",
            arguments=_KERAS_ARGUMENTS,
            fields={"eps": 1e-3, "single_value": "zero"},
            notes=("no running statistics",),
        ),
        "flax": Peer(
            name="flax.linen.InstanceNorm, flax.nnx.InstanceNorm",
            arguments=_FLAX_ARGUMENTS,
            fields={"eps": 1e-6, "single_value": "zero"},
            notes=(_FLAX_PROMOTE, "no running statistics"),
        ),
        "onnx": Peer(
            name="InstanceNormalization-22",
            arguments={"eps": Argument("epsilon")},
            fields={"eps": 1e-5, "single_value": "zero"},
            notes=("scale and bias are required inputs; no running statistics",),
        ),
        "paper": Peer(
            name="Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022",
            fields={"eps": 1e-5, "single_value": "zero"},
            notes=(EPS_UNNAMED, "no running statistics"),
        ),
    },
    "rms_norm": {
        "torch": Peer(
            name="torch.nn.RMSNorm",
            arguments={
                **same(shape="normalized_shape", scale="elementwise_affine"),
                "eps": Argument("eps", written="None (machine epsilon)"),
            },
            fields={"eps": 2.0**-23},
            notes=(
                "eps=None, the default, is the machine epsilon of the dtype it computes in: 2**-23, in float64 2**-52",
                "trailing dimensions only",
                "half inputs: one rounding, after the weight",
            ),
        ),
        "keras": Peer(
            name="keras.layers.RMSNormalization",
            arguments={"eps": Argument("epsilon")},
            fields={"eps": 1e-6},
            notes=(
                "the scale is always there",
                "mixed precision: scale and input are cast to the compute dtype first",
                "destroys an upstream mask",
            ),
        ),
        "flax": Peer(
            name="flax.linen.RMSNorm, flax.nnx.RMSNorm",
            arguments=same(eps="epsilon", scale="use_scale"),
            fields={"eps": 1e-6},
            notes=(_FLAX_PROMOTE,),
        ),
        "equinox": Peer(
            name="equinox.nn.RMSNorm",
            arguments=same(shape="shape", eps="eps", scale="use_weight"),
            fields={"eps": 1e-5},
            notes=("use_bias=True, the default, adds an offset, which no field has",),
        ),
        "onnx": Peer(
            name="RMSNormalization-23",
            arguments={"eps": Argument("epsilon")},
            fields={"eps": 1e-5},
            notes=("scale is a required input; axes from `axis` to the end", _ONNX_STASH),
        ),
        "timm": Peer(
            name="timm.layers.RmsNorm, RmsNorm2d",
            arguments=same(shape="channels", eps="eps", scale="affine"),
            fields={"eps": 1e-6},
            notes=("RmsNorm2d normalises the channels at each position of an image",),
        ),
        "paper": Peer(
            name="Zhang and Sennrich 2019, arXiv:1910.07467",
            fields={"eps": 0.0},
            notes=(_NO_EPS, "the optional bias of equation (4) is left out"),
        ),
    },
    "batch_renorm": {
        "keras": Peer(
            name="keras.layers.BatchNormalization(renorm=True)",
            arguments={
                **_KERAS_ARGUMENTS,
                "decay": Argument("momentum"),
                "renorm_decay": Argument("renorm_momentum"),
                "r_max": Argument("renorm_clipping['rmax']"),
                "r_min": Argument("renorm_clipping['rmin']", written="None"),
                "d_max": Argument("renorm_clipping['dmax']"),
            },
            fields={
                "eps": 1e-3,
                "decay": 0.99,
                "renorm_decay": 0.99,
                "running_quantity": "standard_deviation",
                "r_max": None,
                "r_min": 0.0,
                "d_max": None,
                "r_max_steps": None,
                "d_max_steps": None,
                "single_value": "zero",
            },
            notes=(
                "no bounds and no schedule by default: the first training steps hardly normalise at all",
                "inference reads moving_variance, kept as moving_stddev ** 2 - eps; r and d read renorm_mean and renorm_stddev",
                "no counter of the steps; an empty batch turns the statistics into NaN for good",
            ),
        ),
        "torchrl": Peer(
            name="torchrl.modules.BatchRenorm1d",
            arguments={
                **same(channels="num_features", eps="eps", r_max="max_r", d_max="max_d"),
                **_TORCH_MOMENTUM,
                "r_max_steps": Argument("warmup_steps", written="10000"),
                "d_max_steps": Argument("warmup_steps", written="10000"),
            },
            fields={
                "eps": 1e-5,
                "decay": 0.99,
                "running_quantity": "unbiased_variance",
                "r_max": 3.0,
                "d_max": 5.0,
                "r_max_steps": (10_000, 10_000),
                "d_max_steps": (10_000, 10_000),
                "single_value": "zero",
            },
            notes=(
                "batch normalization for warmup_steps, then the bounds at once; smooth=True blends r and d, not their bounds",
                "its counter goes on after the warm-up, and with it the factor of r - 1 and d: 2 from step 20000 on, and so on",
                "n of the running variance is the batch size, also with positions; a batch of one makes it NaN",
            ),
        ),
        "paper": Peer(
            name="Ioffe 2017, arXiv:1702.03275",
            fields={"eps": 1e-5},
            notes=(EPS_UNNAMED, "the schedule of section 4: its steps belong to the length of its training"),
        ),
    },
    "switchable_norm": {
        "authors": Peer(
            name="SwitchNorm2d of Switchable-Normalization",
            arguments={
                **same(channels="num_features", eps="eps", decay="momentum", use_batch="using_bn", last_gamma="last_gamma"),
                "pooled": Argument("using_moving_average", written="True"),
            },
            fields={"eps": 1e-5, "decay": 0.9, "variance": "unbiased_instance", "initial_variance": 0.0},
            notes=(
                "momentum is the weight of the old statistic; SwitchNorm1d and 3d have 0.997",
                "SwitchNorm1d: use_instance=False, variance='unbiased', neither using_bn nor last_gamma",
                "using_moving_average=False is decay=None and pooled=True, but sums and leaves the division to the user",
                "weight, bias, mean_weight, var_weight, running_mean, running_var; of shapes such as (1, channels, 1, 1)",
                "one position per sample, or a 1d batch of one, gives NaN; variances as E[x^2] - E[x]^2",
            ),
        ),
        "paper": Peer(
            name="Luo et al. 2018, arXiv:1806.10779",
            fields={"eps": 1e-5, "decay": None},
            notes=(
                EPS_UNNAMED,
                "inference averages the statistics of many batches, taken once the parameters are frozen: decay None",
            ),
        ),
    },
    "filter_response_norm": {
        "tfa": Peer(
            name="tensorflow_addons FilterResponseNormalization and TLU (archived)",
            arguments={"eps": Argument("epsilon"), "learned_eps": Argument("learned_epsilon", written="False")},
            fields={"eps": 1e-6, "threshold": "element"},
            from_input=("spatial",),
            notes=(
                "two layers: FilterResponseNormalization, for images with the channel last, then TLU",
                "TLU has a tau for each element of a sample, so that the size of the image is fixed",
                "TLU(affine=True) is max(z, alpha * z + tau), which no field has",
                "learned_epsilon=True is learned_eps='scalar', of shape (1,)",
            ),
        ),
        "timm": Peer(
            name="timm.layers.FilterResponseNormTlu2d",
            arguments={**same(channels="num_features", eps="eps"), "threshold": Argument("apply_act", written="True")},
            fields={"eps": 1e-5},
            notes=(
                "apply_act=False is threshold=None; FilterResponseNormAct2d has an activation function instead",
                "half inputs are squared in half precision: float16 beyond 255 gives 0",
                "rms=False is ignored",
            ),
        ),
        "paper": Peer(
            name="Singh and Krishnan 2019, arXiv:1911.09737",
            fields={"eps": 1e-6},
            notes=("where a channel has one position the paper learns eps, from 1e-4 on: learned_eps",),
        ),
    },
}
