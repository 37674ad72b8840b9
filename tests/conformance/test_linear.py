"""The linear layers of the suite's oracle against torch's own, and the arrangements of their weights."""

import numpy as np
import pytest

from crossnorm import SpectralNormSpec
from crossnorm_conformance.linear import Linear

LAYERS = [
    Linear(kind="dense", outputs=4, inputs=6),
    Linear(kind="convolution", outputs=4, inputs=6, kernel=(3,)),
    Linear(kind="convolution", outputs=4, inputs=6, groups=2, kernel=(3, 2)),
    Linear(kind="convolution", outputs=4, inputs=6, kernel=(2, 3, 2)),
    Linear(kind="transposed", outputs=4, inputs=6, kernel=(3, 2)),
    Linear(kind="transposed", outputs=4, inputs=6, groups=2, kernel=(3, 2)),
    Linear(kind="depthwise", outputs=12, inputs=6, groups=6, kernel=(3, 2)),
    Linear(kind="embedding", outputs=4, inputs=6),
]
ROWS = SpectralNormSpec(shape=1, transposed_row="input", depthwise_row="multiplier", embedding_row="input")


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_outputs_and_gradients_are_those_of_torch(layer):
    torch = pytest.importorskip("torch", reason="torch's layers are the witness")
    random = np.random.default_rng(0)
    weight = random.standard_normal(layer.weight_shape)
    x = random.standard_normal(layer.input_shape)
    if layer.kind == "embedding":
        x = random.integers(0, layer.inputs, layer.input_shape)
    upstream = random.standard_normal(layer(weight, x).shape)
    w, z = torch.tensor(weight, requires_grad=True), torch.tensor(x)
    if layer.kind == "embedding":
        y = torch.nn.functional.embedding(z, w.T)
    elif layer.kind == "dense":
        y = torch.nn.functional.linear(z.requires_grad_(), w)
    else:
        transposed = layer.kind == "transposed"
        name = f"conv_transpose{layer.rank}d" if transposed else f"conv{layer.rank}d"
        kernel = w.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1) if transposed else w
        y = getattr(torch.nn.functional, name)(z.requires_grad_(), kernel, groups=layer.groups)
    y.backward(torch.tensor(upstream))
    np.testing.assert_allclose(layer(weight, x), y.detach().numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(layer.weight_gradient(weight, x, upstream), w.grad.numpy(), rtol=1e-12, atol=1e-13)
    if layer.kind != "embedding":
        np.testing.assert_allclose(layer.input_gradient(weight, x, upstream), z.grad.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_an_arrangement_can_be_undone(layer):
    weight = np.arange(np.prod(layer.weight_shape)).reshape(layer.weight_shape)
    for spec in (SpectralNormSpec(shape=1), ROWS):
        assert np.array_equal(layer.restore(layer.arrange(weight, spec), spec), weight)


def test_rows_of_inputs_and_of_multipliers():
    grouped = Linear(kind="transposed", outputs=4, inputs=6, groups=2, kernel=(3,))
    assert grouped.arrange(np.zeros(grouped.weight_shape), ROWS).shape == (6, 2, 3)
    depthwise = Linear(kind="depthwise", outputs=12, inputs=6, groups=6, kernel=(3,))
    rows = depthwise.arrange(np.arange(36).reshape(depthwise.weight_shape), ROWS)
    assert rows.shape == (2, 6, 3)
    # Output 2 i + m belongs to input i and multiplier m.
    assert rows[1, 4].tolist() == [27, 28, 29]
