# SPDX-License-Identifier: Apache-2.0
"""The settings of a training: ``train.yaml`` beside a model's ``config.yaml``."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

__all__ = ["TrainConfig", "TrainError", "load_train_config"]


class TrainError(ValueError):
    """A training that cannot start; the message names the file or the option, and what was expected."""


@checked_dataclass(frozen=True, config={"extra": "forbid"})
class TrainConfig:
    """``train.yaml`` beside a model's ``config.yaml``. Four values stand for the four stages.

    The last stage is not the paper's: with everything else at rest, the entropy model learns to spend fewer bits on the
    latents that it gets. It costs a fraction of the joint stage and changes no feature but for rounding.
    """

    epochs: tuple[int, int, int, int] = (80, 20, 80, 0)
    batch_size: Annotated[int, Field(ge=1)] = 4  # of each process
    learning_rate: tuple[float, float, float, float] = (1e-4, 1e-4, 1e-4, 1e-4)
    final_learning_rate: float = 5e-6
    warmup_steps: int = 0
    gradient_clip: float = 0.1
    weight_decay: float = 0.0
    # weights of the reconstructed features' squared error, which counts most on objects, in the codec and joint stages
    feature_loss: tuple[float, float] = (0.0, 0.0)
    volume_loss: tuple[float, float] = (0.0, 0.0)  # of the coded volumes likewise, where the vehicle matches the views
    codec_task_loss: bool = True  # the codec stage has the task's loss, as in the paper; else the feature loss alone
    frozen_norms: bool = False  # batch norms rest in the first stage too, for a training from trained weights
    # how much an object of a class counts, 1 where it is not named: rare classes drown among common ones
    class_weights: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    uncompressed_share: float = 0.0  # of the joint stage's steps that train the detector without the codec
    samples: int = 3712  # rendered where there are no images
    validation_samples: int = 200
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"  # auto: bf16-mixed where the processor computes in it
    checkpoint_minutes: float = 5.0
    validation_minutes: float = 10.0
    rate: int = 0  # index into lambdas, for a model of a single rate
    seed: int = 1


def load_train_config(folder: Path) -> TrainConfig:
    """``train.yaml`` of a model folder. Raises TrainError in one line."""
    path = folder / "train.yaml"
    try:
        return TypeAdapter(TrainConfig).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        raise TrainError(f"{path}: expected a file with the training's settings") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise TrainError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise TrainError(f"{path}: {error.strerror}") from None
