"""Optimizers with a train mode, such as schedule-free ones.

In train mode, the model holds the weights at which gradients are taken. In eval mode, it holds the
weights that are meant to be used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Mode = Literal["train", "eval"]


def switch(optimizer: Any, mode: Mode) -> None:
    """Switch an optimizer's mode, if it has modes."""
    if callable(to := getattr(optimizer, mode, None)):
        to()


@contextmanager
def weights_for_use(optimizer: Any) -> Iterator[None]:
    """Inside the block the model holds the weights that are meant to be used."""
    switch(optimizer, "eval")
    try:
        yield
    finally:
        switch(optimizer, "train")
