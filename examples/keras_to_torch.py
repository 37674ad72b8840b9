"""From Keras to PyTorch: a trained ResNet-18 moves, and goes on learning as if it had stayed.

What you learn:

- that you write the network in torch as you always would, and one call, `transfer`, fills it, whatever the names and layouts;
- that it refuses where the two compute different things: Keras' eps is 1e-3 and torch's 1e-5;
- that it proves what it did: the output of each layer, in units of what rounding weights and images once could have caused;
- what it reports and cannot mend: torch's layer stores another estimator of the variance than Keras'. `convert` replaces the
  layers, so that 20 steps of fine-tuning give the same losses and the same predictions. Without it the predictions drift.

`torch_to_keras.py` goes the other way. Run it, about a minute on one core:

    python examples/keras_to_torch.py
"""

import copy
from functools import partial

import keras
from _fine_tuning import fine_tuned, fit_in_keras
from _resnet18 import ResNet18, resnet18
from torch import nn

from crossnorm import MigrationError
from crossnorm.migrate import convert, rules, transfer


def main():
    """Print the migration and the fine-tuning; return the numbers."""
    keras.utils.set_random_seed(0)
    source = resnet18(normalization=partial(keras.layers.BatchNormalization, momentum=0.9))
    accuracy = fit_in_keras(source)
    print(f"ResNet-18, trained in Keras for one epoch: {accuracy:.1%} of the validation images are recognised.\n")

    # 1. With torch's defaults the network computes something else. Nothing is written.
    try:
        transfer(source, ResNet18(normalization=nn.BatchNorm2d))
    except MigrationError as error:
        refusal = str(error)
    print(refusal, "\n")

    # 2. With Keras' eps it computes the same. torch's momentum is the weight of the new value: 0.1 is what Keras calls 0.9.
    target = ResNet18(normalization=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.1))
    report = transfer(source, target)
    print(report, "\n")

    # 3. What torch.nn cannot do, our layers can: store the variance that Keras stores.
    native = copy.deepcopy(target)
    target = convert(target, rules.semantics("keras"))
    distances = fine_tuned(target, source, **{"torch.nn": native})
    return {"accuracy": accuracy, "refusal": refusal, "report": report, "distances": distances}


if __name__ == "__main__":
    main()
