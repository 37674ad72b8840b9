"""The reparametrizations of weights, as each framework has them."""

from ._peer import EPS_UNNAMED, Argument, Peer, same

_CONV2D_ONLY = "Conv2d only"
_ROW_OF_TORCH = {"embedding_row": "input"}
_ROW_OF_KERAS = {"transposed_row": "input", "depthwise_row": "multiplier"}
_NAN_OF_ZEROS = "a weight of zeros becomes NaN"
_ZERO_ROW = "a row of zeros becomes NaN"
_RAW_INFERENCE = "inference uses the stored kernel as it is; training overwrites it with kernel / sigma in every call"
_NO_SIGMA_GRADIENT = "no gradient flows through sigma; trainable=False does not stop the overwriting"
_LAST_AXIS = "the last axis of the kernel is the row: inputs for a transposed, multipliers for a depthwise convolution"
_WHOLE = "dim=None, and dim=-1 too, is norm_over='whole'; a transposed convolution has a length for each input"

WEIGHT_PEERS: dict[str, dict[str, Peer]] = {
    "weight_standardization": {
        "timm": Peer(
            name="timm.layers.StdConv2d, StdConv2dSame",
            arguments=same(eps="eps"),
            fields={"eps": 1e-6, "eps_place": "variance", "ddof": 0},
            notes=(_CONV2D_ONLY, "a fan-in of one raises ValueError", "bias=False by default"),
        ),
        "timm_scaled": Peer(
            name="timm.layers.ScaledStdConv2d, ScaledStdConv2dSame",
            arguments=same(eps="eps", gain="gamma"),
            fields={"eps": 1e-6, "eps_place": "variance", "ddof": 0, "scale": True, "fan_in_scaling": True},
            notes=(
                _CONV2D_ONLY,
                "a fan-in of one raises ValueError",
                "gain, of shape (outputs, 1, 1, 1), is the scale; gain_init is where it starts",
            ),
        ),
        "authors": Peer(
            name="Conv2d of WeightStandardization (PyTorch)",
            fields={"eps": 1e-5, "eps_place": "deviation", "ddof": 1},
            notes=(_CONV2D_ONLY, "a fan-in of one gives NaN"),
        ),
        "authors_tensorflow": Peer(
            name="WeightStandardization (TensorFlow lines of its README)",
            fields={"eps": 1e-5, "eps_place": "deviation", "ddof": 0, **_ROW_OF_KERAS},
            notes=(
                "the biased variance, where the PyTorch lines beside it take the unbiased one",
                "for kernels of rank 4: all axes but the last are averaged over",
            ),
        ),
        "deepmind": Peer(
            name="WSConv2D of deepmind-research/nfnets",
            arguments=same(eps="eps"),
            fields={"eps": 1e-4, "eps_place": "maximum", "ddof": 0, "scale": True, "fan_in_scaling": True},
            notes=(
                _CONV2D_ONLY,
                "eps is an argument of the call; the activation functions carry their gain themselves",
                "gain, of shape (outputs,), is the scale",
            ),
        ),
        "paper": Peer(
            name="Qiao et al. 2019, arXiv:1903.10520",
            fields={"eps": 1e-5, "eps_place": "variance", "ddof": 0},
            notes=(
                EPS_UNNAMED,
                "where eps stands differs between the versions of the paper; the code adds it to the deviation",
            ),
        ),
    },
    "spectral_norm": {
        "torch": Peer(
            name="torch.nn.utils.parametrizations.spectral_norm",
            arguments=same(eps="eps", iterations="n_power_iterations"),
            fields={"eps": 1e-12, "iteration_order": "u_first", "warm_up": 15, **_ROW_OF_TORCH},
            notes=(
                "iterates at every access of the weight in training mode: reading it changes the state",
                "dim picks the rows: by default 0, and 1 for a transposed convolution, whose groups then share a row",
                "raw weight parametrizations.weight.original, state parametrizations.weight.0._u and ._v",
                "a weight of one dimension is divided by its norm and has no state",
                _NAN_OF_ZEROS,
            ),
        ),
        "torch_hook": Peer(
            name="torch.nn.utils.spectral_norm",
            arguments=same(eps="eps", iterations="n_power_iterations"),
            fields={"eps": 1e-12, "iteration_order": "v_first", "warm_up": 0, **_ROW_OF_TORCH},
            notes=(
                "iterates once for each forward pass in training mode",
                "v starts at random too, so that evaluation before any training divides by a chance number",
                "dim as in parametrizations; raw weight weight_orig, state weight_u and weight_v",
                "no deepcopy after a forward pass",
                _NAN_OF_ZEROS,
            ),
        ),
        "keras": Peer(
            name="keras.layers.SpectralNormalization",
            arguments=same(iterations="power_iterations"),
            fields={"eps": 1e-7, "stored": "u", "warm_up": 0, **_ROW_OF_KERAS},
            notes=(
                _RAW_INFERENCE,
                _NO_SIGMA_GRADIENT,
                _LAST_AXIS,
                "u (vector_u) starts truncated normal with deviation 0.02, not of norm 1; eps is keras.config.epsilon()",
                "the output is cast to the dtype of the input: integer indices of an Embedding give integers",
                "a kernel of zeros stays as it is; layers without kernel or embeddings are refused",
            ),
        ),
        "tfa": Peer(
            name="tensorflow_addons SpectralNormalization (archived)",
            arguments=same(iterations="power_iterations"),
            fields={"eps": 1e-12, "eps_place": "maximum_of_square", "stored": "u", "warm_up": 0, **_ROW_OF_KERAS},
            notes=(
                _RAW_INFERENCE,
                _NO_SIGMA_GRADIENT,
                _LAST_AXIS,
                "u (sn_u) starts truncated normal with deviation 0.02, not of norm 1",
                "a kernel of zeros becomes NaN",
            ),
        ),
        "flax": Peer(
            name="flax.linen.SpectralNorm, flax.nnx.SpectralNorm",
            arguments=same(eps="epsilon", iterations="n_steps"),
            fields={"eps": 1e-12, "eps_place": "added_to_square", "iterate": "always", "stored": "u", "warm_up": 0},
            notes=(
                "every parameter of two dimensions or more is normalised; the last axis is the row",
                "update_stats=True stores u and sigma; without it a call iterates and forgets",
                "nnx overwrites the parameter with the normalised one in every call, in evaluation too",
                "u starts normal, in nnx with deviation 0.01; sigma = 0 counts as 1",
            ),
        ),
        "equinox": Peer(
            name="equinox.nn.SpectralNorm",
            arguments=same(eps="eps", iterations="num_power_iterations"),
            fields={"eps": 1e-12, "iteration_order": "u_first", "warm_up": 15, **_ROW_OF_TORCH},
            notes=("the first axis is the row; a weight of one dimension is refused", _NAN_OF_ZEROS),
        ),
        "paper": Peer(
            name="Miyato et al. 2018, arXiv:1802.05957",
            fields={"eps": 0.0, "stored": "u", "warm_up": 0},
            notes=("the paper has no eps: 0", "one iteration suffices, as the weight changes little between two steps"),
        ),
    },
    "weight_norm": {
        "torch": Peer(
            name="torch.nn.utils.parametrizations.weight_norm",
            arguments={"norm_over": Argument("dim", written="0")},
            fields={"eps": 0.0, "transposed_row": "input", **_ROW_OF_TORCH},
            notes=(
                _WHOLE,
                "length parametrizations.weight.original0, of shape (rows, 1, ...); direction original1 beside it",
                _ZERO_ROW,
            ),
        ),
        "torch_hook": Peer(
            name="torch.nn.utils.weight_norm",
            arguments={"norm_over": Argument("dim", written="0")},
            fields={"eps": 0.0, "transposed_row": "input", **_ROW_OF_TORCH},
            notes=(_WHOLE, "length weight_g, direction weight_v", "no deepcopy after a forward pass", _ZERO_ROW),
        ),
        "tfa": Peer(
            name="tensorflow_addons WeightNormalization (archived)",
            arguments={"initial_scale": Argument("data_init", written="True")},
            fields={"eps": 1e-12, "eps_place": "maximum_of_square", "initial_scale": "data", **_ROW_OF_KERAS},
            notes=(
                "data_init=False is initial_scale='norm'; the first call initialises, whatever its mode",
                "data_init takes the moments of what the raw kernel gives, not the normalised one; adds 1e-10 to the variance",
                "the last axis of the kernel is the row; fails on Keras 3",
            ),
        ),
        "flax": Peer(
            name="flax.linen.WeightNorm, flax.nnx.WeightNorm",
            arguments={
                **same(eps="epsilon", scale="use_scale"),
                "norm_over": Argument("feature_axes", written="-1"),
                "initial_scale": Argument("scale_init", written="ones"),
            },
            fields={"eps": 1e-12, "eps_place": "added_to_square", "initial_scale": "ones"},
            notes=(
                "feature_axes=None is norm_over='whole'; variable_filter says which parameters are normalised: the kernels",
                "wrapping changes what the layer computes, as the scale starts at 1",
                "nnx overwrites the parameter in every call, and its scale is no Param: it is not trained",
            ),
        ),
        "equinox": Peer(
            name="equinox.nn.WeightNorm",
            arguments={"norm_over": Argument("axis", written="0")},
            fields={"eps": 0.0, **_ROW_OF_TORCH},
            notes=("axis=None is norm_over='whole'; the first axis is the output, also of a transposed convolution", _ZERO_ROW),
        ),
        "paper": Peer(
            name="Salimans and Kingma 2016, arXiv:1602.07868",
            fields={"eps": 0.0, "initial_scale": "data"},
            notes=("the paper has no eps: 0", "section 3 draws v from a normal distribution with deviation 0.05 first"),
        ),
    },
}
