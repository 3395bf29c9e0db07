"""JointDiff: federated semi-supervised training of joint diffusion-classifiers for medical images.

The library. It knows no Flower, no network, no client and no server.
"""

__version__ = "0.1.0"
