"""Switchable normalization as the paper writes it down, for each framework: what our layers are compared with.

Luo, Ren, Peng, Zhang and Li 2018, arXiv:1806.10779: equation (3) mixes, (4) derives the statistics of layer and batch from
those of the instances by ``mean(variance + mean ** 2) - mean ** 2``, (5) is the softmax. Plain operations on whole arrays and
the framework's own differentiation; training only, in the framework's own layout.

    from switchable_transcription import torch_layer, tensorflow_layer
"""

from typing import Any


def torch_layer(channels: int, eps: float = 1e-5) -> Any:
    """A module for (batch, channel, height, width)."""
    import torch
    from torch import Tensor, nn

    class SwitchableNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
            self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
            self.mean_weight = nn.Parameter(torch.ones(3))
            self.var_weight = nn.Parameter(torch.ones(3))
            self.register_buffer("running_mean", torch.zeros(1, channels, 1, 1))
            self.register_buffer("running_var", torch.ones(1, channels, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            mean_in = x.mean((2, 3), keepdim=True)
            var_in = x.var((2, 3), keepdim=True, correction=0)
            second = var_in + mean_in**2
            mean_ln = mean_in.mean(1, keepdim=True)
            var_ln = second.mean(1, keepdim=True) - mean_ln**2
            mean_bn = mean_in.mean(0, keepdim=True)
            var_bn = second.mean(0, keepdim=True) - mean_bn**2
            with torch.no_grad():
                self.running_mean.mul_(0.9).add_(mean_bn, alpha=0.1)
                self.running_var.mul_(0.9).add_(var_bn, alpha=0.1)
            w, v = self.mean_weight.softmax(0), self.var_weight.softmax(0)
            mean = w[0] * mean_in + w[1] * mean_ln + w[2] * mean_bn
            var = v[0] * var_in + v[1] * var_ln + v[2] * var_bn
            return (x - mean) / (var + eps).sqrt() * self.weight + self.bias

    return SwitchableNorm()


def tensorflow_layer(channels: int, eps: float = 1e-5) -> Any:
    """A Keras layer for (batch, height, width, channel)."""
    import tensorflow as tf
    from keras import layers

    class SwitchableNorm(layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma")
            self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta")
            self.mean_logits = self.add_weight(shape=(3,), initializer="ones", name="mean_logits")
            self.variance_logits = self.add_weight(shape=(3,), initializer="ones", name="variance_logits")
            shape = (1, 1, 1, channels)
            self.moving_mean = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="moving_mean")
            self.moving_variance = self.add_weight(shape=shape, initializer="ones", trainable=False, name="moving_variance")
            self.built = True

        def call(self, x: tf.Tensor, training: bool = True) -> tf.Tensor:
            mean_in = tf.reduce_mean(x, (1, 2), keepdims=True)
            var_in = tf.math.reduce_variance(x, (1, 2), keepdims=True)
            second = var_in + mean_in**2
            mean_ln = tf.reduce_mean(mean_in, 3, keepdims=True)
            var_ln = tf.reduce_mean(second, 3, keepdims=True) - mean_ln**2
            mean_bn = tf.reduce_mean(mean_in, 0, keepdims=True)
            var_bn = tf.reduce_mean(second, 0, keepdims=True) - mean_bn**2
            self.moving_mean.assign(0.9 * self.moving_mean + 0.1 * mean_bn)
            self.moving_variance.assign(0.9 * self.moving_variance + 0.1 * var_bn)
            w, v = tf.nn.softmax(self.mean_logits), tf.nn.softmax(self.variance_logits)
            mean = w[0] * mean_in + w[1] * mean_ln + w[2] * mean_bn
            var = v[0] * var_in + v[1] * var_ln + v[2] * var_bn
            return (x - mean) / tf.sqrt(var + eps) * self.gamma + self.beta

    return SwitchableNorm()
