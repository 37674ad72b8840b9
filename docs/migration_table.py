"""The tables of migration.md: every array and every field of every specification, as both frameworks have it.

    python docs/migration_table.py

writes them anew between the page's two markers. Names and defaults come from `crossnorm.spec.presets` and from the layers
themselves, what `transfer` does from the code that does it; only the links to the divergences are written down here.
"""

import inspect
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import keras
import torch

import crossnorm.tensorflow
import crossnorm.torch
from crossnorm.errors import SpecError
from crossnorm.migrate import describe
from crossnorm.migrate._transfer.matching import TRAINING_FIELDS
from crossnorm.migrate.tensorflow.layers import variables as keras_variables
from crossnorm.migrate.torch.layers import variables as torch_variables
from crossnorm.spec import SPECS, NormSpec, WeightSpec
from crossnorm.spec.presets import PEERS, comparison

PAGE = Path(__file__).parent / "migration.md"
START, END = "<!-- python docs/migration_table.py -->\n", "<!-- end -->\n"

# The rows of divergences.md that a field or an array answers.
ANSWERS: dict[tuple[str, str], tuple[int, ...]] = {
    ("batch_norm", "channels"): (29,),
    ("batch_norm", "scale"): (35,),
    ("batch_norm", "decay"): (4,),
    ("batch_norm", "running_variance"): (1, 2, 3),
    ("batch_norm", "array running_variance"): (14,),
    ("batch_norm", "tracked"): (10,),
    ("batch_norm", "single_value"): (11,),
    ("layer_norm", "eps"): (26,),
    ("layer_norm", "array scale"): (33,),
    ("layer_norm", "shape"): (34,),
    ("layer_norm", "subtract_mean"): (32,),
    ("group_norm", "scale"): (36,),
    ("instance_norm", "channels"): (28,),
    ("instance_norm", "tracked"): (6,),
    ("instance_norm", "decay"): (5,),
    ("instance_norm", "running_variance"): (6,),
    ("instance_norm", "single_value"): (31,),
    ("rms_norm", "eps"): (27,),
    ("rms_norm", "shape"): (77,),
    ("batch_renorm", "r_max"): (74,),
    ("batch_renorm", "d_max"): (74,),
    ("weight_standardization", "shape"): (73,),
    ("weight_standardization", "ddof"): (71,),
    ("weight_standardization", "eps_place"): (72,),
    ("spectral_norm", "transposed_row"): (60,),
    ("spectral_norm", "depthwise_row"): (60,),
    ("spectral_norm", "iterations"): (62,),
    ("spectral_norm", "iteration_order"): (61,),
    ("spectral_norm", "iterate"): (55, 68),
    ("spectral_norm", "warm_up"): (64,),
    ("spectral_norm", "array weight"): (56, 63),
    ("weight_norm", "array scale"): (67,),
    ("weight_norm", "transposed_row"): (67,),
    ("weight_norm", "norm_over"): (66,),
    ("weight_norm", "initial_scale"): (69,),
    ("weight_norm", "eps"): (65,),
}

# What our layers call a field, if not by its own name.
_OURS = {
    "eps": ("epsilon",),
    "scale": ("use_scale", "affine", "elementwise_affine"),
    "offset": ("bias", "center"),
    "decay": ("momentum",),
    "tracked": ("track_running_stats",),
    "channels": ("num_features", "num_channels"),
    "groups": ("num_groups",),
    "shape": ("normalized_shape",),
}


def tables() -> str:
    """All of them, one for each method."""
    return "\n".join(f"### {method}\n\n{_table(method)}" for method in SPECS)


def written(page: str) -> str:
    """The page with the tables of now."""
    head, rest = page.split(START)
    return f"{head}{START}\n{tables()}\n{END}{rest.split(END)[1]}"


# Two specifications that differ in one field.

_FIRST: dict[str, dict[str, Any]] = {
    "channels": {"channels": 8},
    "groups": {"groups": 4},
    "shape": {"shape": (8,)},
    "scale": {"scale": True},
    "tracked": {"tracked": True},
    "learned_eps": {"learned_eps": "channel"},
}
_OTHER: dict[str, Any] = {
    "eps": 0.125,
    "decay": 0.5,
    "renorm_decay": 0.5,
    "channels": 4,
    "groups": 2,
    "shape": (4,),
    "threshold": None,
    "r_max": 7.0,
    "r_min": 0.5,
    "d_max": 7.0,
    "r_max_steps": (1, 2),
    "d_max_steps": (1, 2),
    "initial_variance": 0.5,
    "gain": 2.0,
    "iterations": 3,
    "warm_up": 3,
}


def example(method: str) -> NormSpec:
    """A specification of a method, with all arrays that it can have."""
    cls = SPECS[method]
    values = {name: value for f in fields(cls) if f.name in _FIRST for name, value in _FIRST[f.name].items()}
    if issubclass(cls, WeightSpec):
        values |= {"shape": (8, 4), "scale": method != "spectral_norm"}
    return cls(**values)


def pair(method: str, field: str) -> tuple[NormSpec, NormSpec] | None:
    """Two specifications that differ in this field; None where it has one value only."""
    spec = example(method)
    if field == "spatial":  # which only an element-wise threshold has
        return spec.replace(threshold="element", spatial=(2, 2)), spec.replace(threshold="element", spatial=(2, 3))
    if field == "shape" and isinstance(spec, WeightSpec):
        return spec, spec.replace(shape=(8, 5))
    value = getattr(spec, field)
    hint = get_type_hints(type(spec))[field]
    others = [_OTHER[field]] if field in _OTHER else [not value] if isinstance(value, bool) else _choices(hint)
    for other in others:
        try:
            if other != value:
                return spec, spec.replace(**{field: other})
        except SpecError:
            continue
    return None


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a literal type, or of a union of such."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(value for part in get_args(hint) for value in ((None,) if part is NoneType else _choices(part)))


# The layers of a specification, and what they call its arrays.


def in_torch(spec: NormSpec) -> torch.nn.Module:
    """Our layer."""
    module = {"module": torch.nn.Linear(*reversed(spec.shape))} if isinstance(spec, WeightSpec) else {}
    return crossnorm.torch.layer(spec, **module)


def in_keras(spec: NormSpec) -> keras.layers.Layer:
    """Our layer, built."""
    if isinstance(spec, WeightSpec):
        layer = crossnorm.tensorflow.layer(spec, wrapped=keras.layers.Dense(spec.shape[0], name="layer"))
        layer.build((None, spec.shape[1]))
    else:
        layer = crossnorm.tensorflow.layer(spec)
        layer.build((None, 2, 2, 8))
    return layer


def _names_in_torch(layer: torch.nn.Module) -> dict[str, str]:
    names = {id(tensor): name for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]}
    return {role: names[id(tensor)] for role, (tensor,) in torch_variables(layer).items()}


def _names_in_keras(layer: keras.layers.Layer) -> dict[str, str]:
    held = {role: variables[0].path for role, variables in keras_variables(layer).items() if variables}
    return {role: path.partition("/")[2].replace("/", ".") for role, path in held.items()}


# A table.


def _table(method: str) -> str:
    layers = in_torch(example(method)), in_keras(example(method))
    names = _names_in_torch(layers[0]), _names_in_keras(layers[1])
    rows = [
        (
            f"array `{role}`",
            *(f"`{held[role]}`" if role in held else "none" for held in names),
            "copied" if all(role in held for held in names) else "copied where it is kept",
            _answers(method, f"array {role}"),
        )
        for role in describe(layers[0]).arrays
    ]
    native = comparison(method)
    arguments = _arguments(method, layers)
    rows += [
        (
            f"`{f.name}`",
            _cell(native[f.name].get("torch"), arguments[0], f.name),
            _cell(native[f.name].get("keras"), arguments[1], f.name),
            _transfer(method, f.name),
            _answers(method, f.name),
        )
        for f in fields(SPECS[method])
    ]
    head = f"PyTorch: {_native(method, 'torch')}. Keras: {_native(method, 'keras')}.\n\n"
    titles = "| | PyTorch | Keras | `transfer` | answers |\n|---|---|---|---|---|\n"
    return head + titles + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _native(method: str, framework: str) -> str:
    peer = PEERS[method].get(framework)
    return f"`{peer.name}`" if peer else "ours alone"


def _arguments(method: str, layers: tuple[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of our layers, with their defaults."""
    by_module = issubclass(SPECS[method], WeightSpec)
    makers = getattr(crossnorm.torch, method) if by_module else type(layers[0]), type(layers[1])
    mine, theirs = ({name: p.default for name, p in inspect.signature(maker).parameters.items()} for maker in makers)
    return mine, theirs


def _cell(native: str | None, arguments: dict[str, Any], field: str) -> str:
    """What the framework's own layer calls the field; where it has no say, what ours does."""
    ours = next((name for name in (field, *_OURS.get(field, ())) if name in arguments), None)
    if native is None:
        if ours is None:
            return "from the layer" if field == "shape" else "from the input"
        default = arguments[ours]
        return f"ours: `{ours}`" if default is inspect.Parameter.empty else f"ours: `{ours} = {default!r}`"
    if native.startswith("from the"):
        return native
    if native.endswith("(fixed)") or native.startswith("no "):
        fixed = native.removesuffix(" (fixed)")
        fixed = f"always `{fixed}`" if fixed != native else native
        return f"{fixed}; ours: `{ours}`" if ours else fixed
    return f"`{native}`"


def _transfer(method: str, field: str) -> str:
    """What becomes of two layers that differ in this field only."""
    specs = pair(method, field)
    if specs is None:
        return "has one value"
    arrays = {tuple((array.name, array.shape) for array in (*spec.parameters, *spec.state)) for spec in specs}
    if len(arrays) > 1 or field == "shape":
        return "refused: other arrays"
    return "reported: other training" if field in TRAINING_FIELDS else "refused: other results"


def _answers(method: str, what: str) -> str:
    return ", ".join(f"[{number}](divergences.md#divergence-{number})" for number in ANSWERS.get((method, what), ()))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
