"""Small TensorFlow models, made by TensorFlow in a process of its own; run as a script it writes them."""

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit import formats_kit

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed: pip install 'edgepipe[keras]'"
)


@functools.cache
def files() -> Path:
    """A folder with the files that `write` makes."""
    folder = formats_kit.home() / "keras"
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=250, capture_output=True)
    return folder


def write(folder: Path) -> None:
    import os

    os.environ["CUDA_VISIBLE_DEVICES"], os.environ["TF_CPP_MIN_LOG_LEVEL"] = "-1", "3"
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    folder.mkdir(parents=True)
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu")(image)
    x = layers.DepthwiseConv2D(3, padding="same")(layers.BatchNormalization()(x))
    scores = layers.Dense(5, activation="softmax", name="scores")(layers.GlobalAveragePooling2D()(x))
    net = keras.Model(image, scores)
    net.save(folder / "net.keras")
    net.save(folder / "net.h5")
    net.export(folder / "saved", verbose=False)
    image = np.random.default_rng(3).normal(size=(4, 8, 8, 3)).astype(np.float32)
    np.savez(folder / "answers.npz", image=image, scores=net.predict(image, verbose=0))
    concrete = tf.function(net).get_concrete_function(tf.TensorSpec([None, 8, 8, 3], name="image"))
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(concrete)
    (folder / "net.pb").write_bytes(frozen.graph.as_graph_def().SerializeToString())
    keras.Sequential([keras.Input((4,)), layers.Dense(3)]).save(folder / "plain.keras")
    a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    two = keras.Model([a, b], [layers.Dense(2)(a), layers.Dense(3)(layers.Concatenate()([a, b]))])
    two.save(folder / "two.keras")
    code = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2)])
    code.save(folder / "lambda.keras")
    code.save(folder / "lambda.h5")
    keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)]).save(folder / "open.keras")
    signal = keras.Input((16, 1))
    keras.Model(signal, layers.LSTM(3)(signal)).save(folder / "lstm.keras")

    class Words(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, text):
            return tf.strings.length(text)

    tf.saved_model.save(Words(), str(folder / "words"))

    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1])])
        def __call__(self, x):
            return x + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)

    tf.saved_model.save(Reader(), str(folder / "reader"))

    class Complex(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([4])])
        def __call__(self, x):
            return tf.signal.rfft(x)

    tf.saved_model.save(Complex(), str(folder / "complex"))
    net.save_weights(folder / "only.weights.h5")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
